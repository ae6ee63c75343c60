-- A stretch of the records an index has, in the order of keys.
-- KEYS[1] the index of all keys; ARGV[1] what every name begins with; ARGV[2] from where; ARGV[3] to where;
-- ARGV[4] how many; then the indexes that have what is looked for
local base = ARGV[1]
local index, least
for at = 5, #ARGV do
  local count = redis.call('ZLEXCOUNT', base .. ARGV[at], ARGV[2], ARGV[3])
  if not least or count < least then
    index, least = base .. ARGV[at], count
  end
end
local found = {}
for _, member in ipairs(redis.call('ZRANGEBYLEX', index, ARGV[2], ARGV[3], 'LIMIT', 0, ARGV[4])) do
  local record = redis.call('HMGET', base .. ':r' .. member,
    'generation', 'level', 'size', 'created', 'used', 'deadline', 'hits', 'tags')
  table.insert(record, 1, member)
  found[#found + 1] = record
end
return found
