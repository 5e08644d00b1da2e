-- Binds an exchange's keys to the holding queue, and takes away what would lead to the lane past the gate.
-- KEYS: binding table, its permanent members   ARGV: separator, the lane, then the members to add
-- Returns the members that were taken away, without their queue.
local away = {}
for _, member in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    local tail = ARGV[1] .. ARGV[2]
    if #member >= #tail and string.sub(member, -#tail) == tail then
        redis.call('SREM', KEYS[1], member)
        redis.call('SREM', KEYS[2], member)
        away[#away + 1] = string.sub(member, 1, -#tail - 1)
    end
end
for arg = 3, #ARGV do
    redis.call('SADD', KEYS[1], ARGV[arg])
    redis.call('SADD', KEYS[2], ARGV[arg])
end
-- The last thing, so that the caller's tracking is told of the next change.
redis.call('SCARD', KEYS[1])
return away
