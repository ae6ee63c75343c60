-- ARGV[4] delta; ARGV[5] start; ARGV[6] deadline, empty for never; ARGV[7] now; ARGV[8] life in milliseconds, 0 for ever
-- Returns the sum, or 0 when it would leave the range: integers of replies are doubles here, so the sum is text.
local known = redis.call('HMGET', KEYS[1], 'sum', 'deadline', 'cleared')
local live = known[1] and tonumber(known[3]) >= cleared
  and (known[2] == '' or tonumber(known[2]) > tonumber(ARGV[7]))
if not live then
  redis.call('UNLINK', KEYS[1])
  redis.call('HSET', KEYS[1], 'sum', ARGV[5], 'deadline', ARGV[6], 'cleared', string.format('%.0f', cleared))
  if ARGV[8] ~= '0' then redis.call('PEXPIRE', KEYS[1], ARGV[8]) end
end
local added = redis.pcall('HINCRBY', KEYS[1], 'sum', ARGV[4])
if type(added) == 'table' and added.err then
  if not live then redis.call('UNLINK', KEYS[1]) end
  if string.find(added.err, 'overflow') then return 0 end
  return added
end
return redis.call('HGET', KEYS[1], 'sum')
