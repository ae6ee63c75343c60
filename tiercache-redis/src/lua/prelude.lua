-- What changes entries or a counter begins with this.
-- KEYS[1] and so on what is changed; the last of KEYS the record, unless keys are spread over a cluster
-- ARGV[1] the era; ARGV[2] the record's field of the namespace's clearing; ARGV[3] clearings the caller knows of

-- The generation in an envelope or a mark of removal: 6 bytes at offset 11, the lowest first.
local function generation(bytes)
  local a, b, c, d, e, f = string.byte(bytes, 12, 17)
  if not f or string.sub(bytes, 1, 2) ~= '\199\126' then return nil end
  return a + 256 * (b + 256 * (c + 256 * (d + 256 * (e + 256 * f))))
end

local cleared = tonumber(ARGV[3])
if #KEYS > 1 then
  local known = redis.call('HMGET', KEYS[#KEYS], 'era', 'all', ARGV[2])
  if known[1] ~= ARGV[1] then return -1 end
  cleared = math.max(cleared, tonumber(known[2] or 0), tonumber(known[3] or 0))
end
