#!lua
-- Store and queue children of a run: a batch, or a part of it.
--
-- ARGV     id of the parent, epoch, nonce, batch id or '', its seed, turns of a child that count for progress or 0,
--          children in the whole batch, how many follow, and of each: id, agent, conversation (list), context fields (list of name, value)
-- Answers  {'OK'} | {'CANCELLED'}: the parent is to be cancelled, nothing was stored
--          | {'SUPERSEDED'}: another process holds the parent now, nothing was stored
-- Events   run_enqueued
--
-- A step that is executed again spawns children with the same ids. A child that exists is left as it is.
-- include: lib/args.lua
-- include: lib/create.lua
local parent_id, epoch, nonce, batch, seed, max_turns, total, count =
  take(), take_number(), take(), take(), take(), take_number(), take_number(), take_number()

local parent = load_run(parent_id)
if not is_held_by(parent, epoch, nonce) then
  return {'SUPERSEDED'}
end
if parent.cancel_requested == '1' then
  return {'CANCELLED'}
end

local now = now_ms()
local metadata = '{"parent_id":"' .. parent_id .. '","batch_id":' .. (batch == '' and 'null' or '"' .. batch .. '"') .. '}'
for _ = 1, count do
  local run = {id = take(), agent = take(), owner = parent.owner, crashes = 0}
  local conversation = take_list()
  local fields = take_list()
  if create(run, conversation, fields, now, metadata) then
    write_run(run.id, 'parent', parent_id, 'batch', batch)
    redis.call('SADD', children_key(parent_id), run.id)
    if batch ~= '' then
      if redis.call('HSETNX', batch_key(batch), 'total', total) == 1 then
        redis.call('HSET', batch_key(batch), 'owner', parent.owner, 'parent', parent_id, 'parent_agent', parent.agent,
          'seed', seed, 'created_at', now, 'max_turns', max_turns)
      end
      redis.call('HINCRBY', batch_key(batch), 'active', 1)
      redis.call('PERSIST', batch_key(batch))
    end
  end
end
return {'OK'}
