-- Moves the oldest messages of one list to the newest end of another, each as the caller has readdressed it, as long as they are
-- what the caller has read.
-- KEYS: owner, from, to   ARGV: owner's value, time to live in ms, then for each message what it is and what it becomes
-- Returns how many were moved (-1: somebody else has the worker).
local owner, from, to = KEYS[1], KEYS[2], KEYS[3]
if redis.call('GET', owner) ~= ARGV[1] then
    return -1
end
redis.call('PEXPIRE', owner, ARGV[2])
local moved = 0
for arg = 3, #ARGV, 2 do
    if redis.call('LINDEX', from, -1) ~= ARGV[arg] then
        break
    end
    redis.call('RPOP', from)
    redis.call('LPUSH', to, ARGV[arg + 1])
    moved = moved + 1
end
return moved
