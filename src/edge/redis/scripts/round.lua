-- One round for all workers of a gate: moves from each intake to its lane what the lane has room for, most urgent first,
-- oldest first. Reads every list at its end, so that the caller's tracking is told of the next change: what is written after
-- a read is tracked no more.
-- KEYS: for each worker owner, edge, its intake's lists, its lane's lists, in the order in which kombu asks for them
-- ARGV: lists per queue, most moves of this round, time to live in ms (0: as it is), then for each worker the owner's value
--       and the depth (0: move nothing)
-- Returns for each worker: moved (-1: somebody else has it), waiting in the lane, waiting in the intake
local steps, budget, ttl = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local each = 2 + 2 * steps
local said = {}
for worker = 0, #KEYS / each - 1 do
    local key, arg = worker * each, 3 + worker * 2
    local owner, edge = KEYS[key + 1], KEYS[key + 2]
    local value, depth = ARGV[arg + 1], tonumber(ARGV[arg + 2])
    local moved, lane, intake = 0, 0, 0
    if redis.call('GET', owner) ~= value then
        moved = -1
    else
        local open = redis.call('GET', edge) == value
        if ttl > 0 then
            redis.call('PEXPIRE', owner, ttl)
            if open then redis.call('PEXPIRE', edge, ttl) end
        end
        for step = 1, steps do
            lane = lane + redis.call('LLEN', KEYS[key + 2 + steps + step])
        end
        for step = 1, steps do
            local from, to = KEYS[key + 2 + step], KEYS[key + 2 + steps + step]
            local waiting = redis.call('LLEN', from)
            while open and waiting > 0 and lane < depth and moved < budget do
                redis.call('LMOVE', from, to, 'RIGHT', 'LEFT')
                moved, lane, waiting = moved + 1, lane + 1, waiting - 1
            end
            intake = intake + waiting
        end
        budget = budget - moved
    end
    said[#said + 1] = {moved, lane, intake}
end
if budget < tonumber(ARGV[2]) then
    for worker = 0, #KEYS / each - 1 do
        for list = 1, 2 * steps do
            redis.call('LLEN', KEYS[worker * each + 2 + list])
        end
    end
end
return said
