-- Leaves a mark of removal for its life in milliseconds.
-- Returns the generation of what stood there, and whether the mark stands there now, or the server's error.
local function change(name, mark, life)
  local below = generation(mark)
  local head = redis.pcall('GETRANGE', name, '0', '36')
  if type(head) == 'table' then return head end
  local old = generation(head)
  if old and old >= below then return {old, 0} end
  if redis.pcall('SET', name, mark, 'PX', life).err then
    -- When memory is full, this write is allowed, and a script that has begun to write may go on.
    redis.call('UNLINK', name)
    redis.call('SET', name, mark, 'PX', life)
  end
  return {old or 0, 1}
end
