-- Returns whether there was a counter.
local known = redis.call('HGET', KEYS[1], 'cleared')
redis.call('UNLINK', KEYS[1])
return known and tonumber(known) >= cleared and 1 or 0
