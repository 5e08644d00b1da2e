-- Opens the edge: from here on a round may move.
-- KEYS: owner, edge   ARGV: owner's value, time to live in ms
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return 1
