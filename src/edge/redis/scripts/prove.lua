-- Does to each list what an edge does to it, and changes nothing: whoever may not do it is told so before any message waits
-- for it.
-- KEYS: owner, edge, the intake's lists, the lane's lists
redis.call('PTTL', KEYS[2])
for list = 3, #KEYS do
    redis.call('LLEN', KEYS[list])
    redis.call('LINDEX', KEYS[list], -1)
    -- Out at one end and in at the same.
    redis.call('LMOVE', KEYS[list], KEYS[list], 'RIGHT', 'RIGHT')
end
-- There is no such list, and that is not what is asked.
local renamed = redis.pcall('RENAME', KEYS[3] .. '.worker-gate.probe', KEYS[3] .. '.worker-gate.probe')
if renamed.err and not string.find(renamed.err, 'no such key', 1, true) then
    return redis.error_reply(renamed.err)
end
return 1
