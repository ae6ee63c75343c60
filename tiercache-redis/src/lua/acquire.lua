-- KEYS[1] the lease; KEYS[2] the last token of the level
-- ARGV[1] the holder; ARGV[2] the term in milliseconds
-- Returns the token, or the negative of the milliseconds another has left, less one. Tokens are below 2^53 until 2255.
local known = redis.call('HMGET', KEYS[1], 'holder', 'token')
local token = tonumber(known[2])
if known[1] and known[1] ~= ARGV[1] then
  return -1 - math.max(redis.call('PTTL', KEYS[1]), 0)
end
if not known[1] then
  token = redis.call('INCR', KEYS[2])
  -- A user may not be allowed to ask.
  local time = redis.pcall('TIME')
  local least = time.err and 0 or tonumber(time[1]) * 1000000 + tonumber(time[2])
  if token < least then
    token = least
    redis.call('SET', KEYS[2], string.format('%.0f', token))
  end
  redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'token', string.format('%.0f', token))
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return token
