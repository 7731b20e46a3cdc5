#!lua flags=allow-oom
-- Remove runs of an agent that ended with `status` more than `age` ms ago. One whose parent has not ended is left for
-- later: the parent may still wait for it.
--
-- ARGV     agent, status, age in ms, most runs to remove
-- Answers  how many were removed
-- include: lib/args.lua
-- include: lib/run.lua
local agent, status, age, most = take(), take(), take_number(), take_number()

local function remove(id)
  redis.call('UNLINK', run_key(id), conversation_key(id), fields_key(id), journal_key(id), mail_key(id), seen_key(id),
    awaits_key(id), children_key(id))
end

local ended = ended_key(agent .. ':' .. status)
local over = redis.call('ZRANGEBYSCORE', ended, '-inf', now_ms() - age, 'LIMIT', 0, most)
local removed = 0
for _, id in ipairs(over) do
  local parent = redis.pcall('HGET', run_key(id), 'parent') -- a table: its keys were damaged
  local awaiting = type(parent) == 'string' and parent ~= '' and redis.pcall('HGET', run_key(parent), 'status')
  if type(awaiting) == 'string' and not is_final(awaiting) then
    redis.call('ZADD', ended, now_ms(), id)
  else
    remove(id)
    redis.call('ZREM', ended, id)
    removed = removed + 1
  end
end
return removed
