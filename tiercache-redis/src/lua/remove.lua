-- ARGV[4] the mark; ARGV[5] its life in milliseconds
-- Returns the generation of what stood there, and whether the mark stands there now.
local below = generation(ARGV[4])
local old = generation(redis.call('GETRANGE', KEYS[1], 0, 36))
if old and old >= below then return {old, 0} end
-- A script that has begun to write may go on when memory is full, and this write is allowed then.
redis.call('UNLINK', KEYS[1])
redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
return {old or 0, 1}
