-- KEYS[1] the lease; ARGV[1] the holder; ARGV[2] the term in milliseconds, 0 to end it now
-- Returns the token, or 0 when the holder does not have it.
local known = redis.call('HMGET', KEYS[1], 'holder', 'token')
if known[1] ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then redis.call('UNLINK', KEYS[1]) else redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return tonumber(known[2])
