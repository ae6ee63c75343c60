-- KEYS[1] the record; ARGV[1] the era; ARGV[2] the field; ARGV[3] below which generation all is dead
-- Counters have no generation, and go whatever was cleared before: each clearing is above the last.
redis.call('HDEL', KEYS[1], '')
if redis.call('HGET', KEYS[1], 'era') ~= ARGV[1] then return -1 end
local below = tonumber(ARGV[3])
local fields = {'all', ARGV[2]}
if ARGV[2] == 'all' then fields = redis.call('HKEYS', KEYS[1]) end
for _, field in ipairs(fields) do
  if field == 'all' or string.sub(field, 1, 1) == 'n' then
    local known = tonumber(redis.call('HGET', KEYS[1], field) or 0)
    if known >= below then below = known + 1 end
  end
end
local text = string.format('%.0f', below)
redis.call('HSET', KEYS[1], ARGV[2], text)
if below > tonumber(redis.call('HGET', KEYS[1], 'high') or 0) then redis.call('HSET', KEYS[1], 'high', text) end
redis.call('HINCRBY', KEYS[1], 'version', 1)
return 0
