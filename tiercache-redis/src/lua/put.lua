-- Puts an envelope for a life in milliseconds, 0 for ever.
-- Returns words that no single wrong bit makes another of, or the server's error.
local function change(name, envelope, life)
  local new = generation(envelope)
  if new < cleared then return 'superseded' end
  -- Numbers that a script gives to a command are printed as fractions first, which takes longer than reading.
  local head = redis.pcall('GETRANGE', name, '0', '36')
  if type(head) == 'table' then return head end
  local old = generation(head)
  if old and old > new then return 'superseded' end
  -- A mark of removal has version 0 and gives way to its own generation.
  if old == new and string.byte(head, 3) ~= 0 then
    -- The checksum; no two sealed envelopes (flag 32) are alike, so of those the size and the times.
    local sealed = math.floor(string.byte(envelope, 4) / 32) % 2 == 1
    local from, to = 30, 37
    if sealed then from, to = 8, 29 end
    if string.sub(head, from, to) == string.sub(envelope, from, to) then return 'unchanged' end
    return 'superseded'
  end
  local set
  if life == '0' then
    set = redis.pcall('SET', name, envelope)
  else
    set = redis.pcall('SET', name, envelope, 'PX', life)
  end
  return set.err and set or 'stored'
end
