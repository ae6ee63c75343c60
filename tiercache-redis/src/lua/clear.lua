-- KEYS[1] the record; ARGV[1] the era; ARGV[2] the field; ARGV[3] below which generation all is dead
redis.call('HDEL', KEYS[1], '')
local known = redis.call('HMGET', KEYS[1], 'era', ARGV[2])
if known[1] ~= ARGV[1] then return -1 end
local below = math.max(tonumber(known[2] or 0), tonumber(ARGV[3]))
redis.call('HSET', KEYS[1], ARGV[2], string.format('%.0f', below))
redis.call('HINCRBY', KEYS[1], 'version', 1)
return 0
