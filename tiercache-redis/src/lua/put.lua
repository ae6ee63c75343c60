-- ARGV[4] the envelope; ARGV[5] its life in milliseconds, 0 for ever
-- Returns words that no single wrong bit makes another of.
local new = generation(ARGV[4])
if new < cleared then return 'superseded' end
local head = redis.call('GETRANGE', KEYS[1], 0, 36)
local old = generation(head)
if old and old > new then return 'superseded' end
-- A mark of removal has version 0 and gives way to its own generation.
if old == new and string.byte(head, 3) ~= 0 then
  -- The checksum; no two sealed envelopes (flag 32) are alike, so of those the size and the times.
  local sealed = math.floor(string.byte(ARGV[4], 4) / 32) % 2 == 1
  local from, to = 30, 37
  if sealed then from, to = 8, 29 end
  if string.sub(head, from, to) == string.sub(ARGV[4], from, to) then return 'unchanged' end
  return 'superseded'
end
if ARGV[5] == '0' then
  redis.call('SET', KEYS[1], ARGV[4])
else
  redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
end
return 'stored'
