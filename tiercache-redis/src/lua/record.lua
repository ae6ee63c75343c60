-- Applies a batch of events to the tracking.
-- KEYS[1] the index of all keys; ARGV[1] what every name begins with; then event after event, each a letter and
-- what belongs to it.
local base = ARGV[1]
local all = base .. ':k'
local at = 1

local function take()
  at = at + 1
  return ARGV[at]
end

-- Calls `act` with the index of each tag; tags are packed as lengths and texts.
local function each_tag(packed, act)
  local from = 1
  while from <= #packed do
    local colon = string.find(packed, ':', from, true)
    local length = tonumber(string.sub(packed, from, colon - 1))
    act(base .. ':t' .. string.sub(packed, colon + 1, colon + length))
    from = colon + length + 1
  end
end

local function forget(member)
  local name = base .. ':r' .. member
  local known = redis.call('HMGET', name, 'level', 'tags')
  redis.call('ZREM', all, member)
  if known[1] then
    redis.call('ZREM', base .. ':l' .. known[1], member)
    each_tag(known[2] or '', function(index) redis.call('ZREM', index, member) end)
  end
  redis.call('UNLINK', name)
end

-- Sums stay at the highest number.
local function add(name, field, more)
  local added = redis.pcall('HINCRBY', name, field, more)
  if type(added) == 'table' and added.err then
    if not string.find(added.err, 'overflow') then error(added.err) end
    redis.call('HSET', name, field, '9223372036854775807')
  end
end

local function generation(member)
  return tonumber(redis.call('HGET', base .. ':r' .. member, 'generation') or nil)
end

local apply = {}

function apply.stored()
  local member, new = take(), take()
  local level, size, created, used, deadline, hits, tags = take(), take(), take(), take(), take(), take(), take()
  local name = base .. ':r' .. member
  local known = redis.call('HMGET', name, 'generation', 'level', 'tags')
  if known[1] then
    if tonumber(known[1]) > tonumber(new) then return end
    if known[2] ~= level then redis.call('ZREM', base .. ':l' .. known[2], member) end
    if known[3] ~= tags then
      each_tag(known[3] or '', function(index) redis.call('ZREM', index, member) end)
    end
  end
  redis.call('HSET', name, 'generation', new, 'level', level, 'size', size, 'created', created,
    'used', used, 'deadline', deadline, 'hits', hits, 'tags', tags)
  redis.call('ZADD', all, '0', member)
  redis.call('ZADD', base .. ':l' .. level, '0', member)
  each_tag(tags, function(index) redis.call('ZADD', index, '0', member) end)
end

function apply.moved()
  local member, of, level = take(), tonumber(take()), take()
  local name = base .. ':r' .. member
  local known = redis.call('HMGET', name, 'generation', 'level')
  if not known[1] or tonumber(known[1]) > of then return end
  redis.call('HSET', name, 'level', level)
  redis.call('ZREM', base .. ':l' .. known[2], member)
  redis.call('ZADD', base .. ':l' .. level, '0', member)
end

function apply.removed()
  local member, of = take(), tonumber(take())
  local known = generation(member)
  if known and known <= of then forget(member) end
end

function apply.used()
  local member, hits, when = take(), take(), take()
  local name = base .. ':r' .. member
  local used = redis.call('HGET', name, 'used')
  if not used then return end
  add(name, 'hits', hits)
  if tonumber(when) > tonumber(used) then redis.call('HSET', name, 'used', when) end
end

function apply.dropped()
  local index, from, to, below = base .. take(), take(), take(), tonumber(take())
  repeat
    local members = redis.call('ZRANGEBYLEX', index, from, to, 'LIMIT', 0, 1000)
    for _, member in ipairs(members) do
      local known = generation(member)
      if not known or known < below then forget(member) end
      from = '(' .. member
    end
  until #members == 0
end

function apply.counted()
  for _, field in ipairs({ 'hot', 'cold', 'dry', 'misses', 'sets', 'deletes' }) do
    local more = take()
    if more ~= '0' then add(base .. ':totals', field, more) end
  end
end

while at < #ARGV do
  apply[take()]()
end
return 0
