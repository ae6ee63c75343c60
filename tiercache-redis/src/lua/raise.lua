-- KEYS[1] the record; ARGV[1] the era; ARGV[2] a generation
-- Returns up to which generation the record reaches.
redis.call('HDEL', KEYS[1], '')
local known = redis.call('HMGET', KEYS[1], 'era', 'high')
if known[1] ~= ARGV[1] then return -1 end
local high = math.max(tonumber(known[2]), tonumber(ARGV[2]))
redis.call('HSET', KEYS[1], 'high', string.format('%.0f', high))
return high
