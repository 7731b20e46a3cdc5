#!lua flags=allow-oom
-- Remove runs of an agent that ended with `status` more than `age` ms ago. A run whose parent has not ended is kept for
-- now: the parent may still await it.
--
-- ARGV     agent, status, age in ms, most runs to remove
-- Answers  how many were removed
-- include: lib/args.lua
-- include: lib/run.lua
local agent, status, age, most = take(), take(), take_number(), take_number()

local ended = ended_key(agent .. ':' .. status)
local over = redis.call('ZRANGEBYSCORE', ended, '-inf', now_ms() - age, 'LIMIT', 0, most)
local removed = 0
for _, id in ipairs(over) do
  local parent = redis.pcall('HGET', run_key(id), 'parent') -- a table: the key is damaged
  local parent_status = type(parent) == 'string' and parent ~= '' and redis.pcall('HGET', run_key(parent), 'status')
  if type(parent_status) == 'string' and not is_final(parent_status) then
    redis.call('ZADD', ended, now_ms(), id)
  else
    redis.call('UNLINK', keys_of_run(id))
    redis.call('ZREM', ended, id)
    removed = removed + 1
  end
end
return removed
