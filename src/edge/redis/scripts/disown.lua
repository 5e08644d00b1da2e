-- Lets a worker go, and leaves its lists as they are.
-- KEYS: owner   ARGV: owner's value
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('DEL', KEYS[1])
end
return 1
