-- ARGV[4], ARGV[5] what `change` is given beside the name
return change(KEYS[1], ARGV[4], ARGV[5])
