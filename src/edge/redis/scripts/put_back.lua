-- Puts what waits in the lane back to the head of the intake, in order; shuts the edge, or lets the worker go, with it.
-- KEYS: owner, edge, the intake's lists, the lane's lists   ARGV: owner's value, 'lane' | 'shut' | 'release'
-- Returns how many were put back (-1: somebody else has the worker), and the oldest of them.
local owner, edge = KEYS[1], KEYS[2]
if redis.call('GET', owner) ~= ARGV[1] then
    return {-1}
end
if ARGV[2] ~= 'lane' then
    redis.call('DEL', edge)
end
local steps, moved, oldest = (#KEYS - 2) / 2, 0, false
for step = 1, steps do
    local intake, lane = KEYS[2 + step], KEYS[2 + steps + step]
    local here, there = redis.call('LLEN', lane), redis.call('LLEN', intake)
    if here > 0 then
        oldest = oldest or redis.call('LINDEX', lane, -1)
        moved = moved + here
        -- Whichever is shorter is moved, so that a million that wait in one of them cost no more than the other's few. A list
        -- that expires keeps its own time, and is moved one by one.
        if there < here and redis.call('PTTL', lane) == -1 and redis.call('PTTL', intake) < 0 then
            for _ = 1, there do redis.call('LMOVE', intake, lane, 'RIGHT', 'LEFT') end
            redis.call('RENAME', lane, intake)
        else
            for _ = 1, here do redis.call('LMOVE', lane, intake, 'LEFT', 'RIGHT') end
        end
    end
end
if ARGV[2] == 'release' then
    redis.call('DEL', owner)
end
return {moved, oldest}
