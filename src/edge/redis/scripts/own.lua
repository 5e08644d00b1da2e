-- Takes a worker, unless somebody has it.
-- KEYS: owner, fence, edge   ARGV: gate, pid, time to live in ms
local held = redis.call('GET', KEYS[1])
if held then
    return {0, held}
end
-- Each ownership has a number that none before it had, so that a gate that slept through its own end is told from the next.
local fence = redis.call('INCR', KEYS[2])
local value = cjson.encode({gate = ARGV[1], pid = tonumber(ARGV[2]), fence = fence})
redis.call('SET', KEYS[1], value, 'PX', ARGV[3])
redis.call('DEL', KEYS[3])
return {1, value}
