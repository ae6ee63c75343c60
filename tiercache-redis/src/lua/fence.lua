-- KEYS[1] the record; ARGV[1] the era; ARGV[2] the fence's field; ARGV[3] its generation at least;
-- ARGV[4] the highest generation there is; ARGV[5] how many fields the record may have; ARGV[6] the field of the
-- fence of everything
-- Returns the fence's generation.
redis.call('HDEL', KEYS[1], '')
local known = redis.call('HMGET', KEYS[1], 'era', 'high')
if known[1] ~= ARGV[1] then return -1 end
local high = tonumber(known[2])
local fence = math.min(math.max(tonumber(ARGV[3]), high + 1), tonumber(ARGV[4]))
local text = string.format('%.0f', fence)
redis.call('HSET', KEYS[1], 'high', string.format('%.0f', math.max(high, fence)), ARGV[2], text)
redis.call('HINCRBY', KEYS[1], 'version', 1)
-- Too many to be read again and again: one fence, of everything, stands for all of them.
if redis.call('HLEN', KEYS[1]) > tonumber(ARGV[5]) then
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    local kind = string.sub(field, 1, 1)
    if kind == 'f' or kind == 'n' then redis.call('HDEL', KEYS[1], field) end
  end
  redis.call('HSET', KEYS[1], 'all', text, ARGV[6], text)
end
return fence
