#!lua flags=allow-oom
-- Remove runs of an agent that ended with `status` more than `age` ms ago.
--
-- ARGV     agent, status, age in ms, most runs to remove
-- Answers  how many were removed
-- include: lib/args.lua
-- include: lib/time.lua
local agent, status, age, most = take(), take(), take_number(), take_number()
local ended = ended_key(agent .. ':' .. status)
local over = redis.call('ZRANGEBYSCORE', ended, '-inf', now_ms() - age, 'LIMIT', 0, most)
for _, id in ipairs(over) do
  redis.call('UNLINK', run_key(id), conversation_key(id), fields_key(id), journal_key(id), mail_key(id), seen_key(id),
    awaited_key(id), children_key(id))
  redis.call('ZREM', ended, id)
end
return #over
