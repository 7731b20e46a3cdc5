#!lua
-- Store and queue the runs of a batch that no run has spawned, or a part of them.
--
-- ARGV     batch, its seed, owner, agent, runs in the whole batch, turns of a run that count for progress or 0,
--          how many follow, and of each: id, conversation (list), context fields (list of name, value)
-- Answers  {'OK', event id of the first run that was stored, or ''} | {'CANCELLED'}: the batch was cancelled meanwhile,
--          nothing was stored | {'OTHER'}: the id is that of a batch of another kind, nothing was stored
-- Events   run_enqueued
--
-- A batch that is enqueued again has the same ids. A run that exists is left as it is.
-- include: lib/args.lua
-- include: lib/create.lua
-- include: lib/batch.lua
local id, seed, owner, agent, total, max_turns, count =
  take(), take(), take(), take(), take_number(), take_number(), take_number()

local batch = load_batch(id)
if batch.total > 0 and (batch.total ~= total or batch.owner ~= owner or batch.parent_agent ~= agent or batch.parent) then
  return {'OTHER'}
elseif batch.cancel_requested then
  return {'CANCELLED'}
end

local now, first_event = now_ms(), nil
local metadata = '{"parent_id":null,"batch_id":"' .. id .. '"}'
for _ = 1, count do
  local run = {id = take(), agent = agent, owner = owner, crashes = 0}
  local conversation = take_list()
  local fields = take_list()
  local event = create(run, conversation, fields, now, metadata)
  if event then
    first_event = first_event or event
    write_run(run.id, 'batch', id)
    if redis.call('HSETNX', batch_key(id), 'total', total) == 1 then
      redis.call('HSET', batch_key(id), 'owner', owner, 'parent_agent', agent, 'seed', seed, 'created_at', now,
        'max_turns', max_turns)
    end
    redis.call('HINCRBY', batch_key(id), 'active', 1)
    redis.call('PERSIST', batch_key(id))
  end
end
return {'OK', first_event or ''}
