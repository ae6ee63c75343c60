-- Begins a new era, unless somebody else did.
-- KEYS[1] the record; ARGV[1] the era that ended, empty when there was none; ARGV[2] the new one;
-- ARGV[3] a generation that may have been given out
-- This write is allowed when memory is full, and with it those that follow.
redis.call('HDEL', KEYS[1], '')
local known = redis.call('HMGET', KEYS[1], 'era', 'high')
local high = string.format('%.0f', math.max(tonumber(known[2] or 0), tonumber(ARGV[3])))
if known[1] and known[1] ~= ARGV[1] then
  redis.call('HSET', KEYS[1], 'high', high)
else
  redis.call('UNLINK', KEYS[1])
  redis.call('HSET', KEYS[1], 'era', ARGV[2], 'high', high, 'version', 0)
end
