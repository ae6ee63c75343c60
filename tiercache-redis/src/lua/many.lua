-- From ARGV[4] on, by twos, what `change` is given beside each name.
-- Returns the answers in their order.
local answers = {}
for at = 1, #KEYS - 1 do
  answers[at] = change(KEYS[at], ARGV[2 * at + 2], ARGV[2 * at + 3])
end
return answers
