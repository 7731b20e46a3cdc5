#!lua
-- Store a new run and queue it.
--
-- ARGV     id, agent, owner, head (its ids as JSON members), conversation (list), context fields (list of name, value)
-- Answers  {'OK', event id} | {'DUP', status}: there is such a run already, nothing was changed
-- Events   run_enqueued
-- include: lib/args.lua
-- include: lib/run.lua
local run = {id = take(), agent = take(), owner = take(), head = take(), crashes = 0}
local conversation = take_list()
local fields = take_list()

local status = redis.call('HGET', run_key(run.id), 'status')
if status then
  return {'DUP', status}
end

local now = now_ms()
append_all(conversation_key(run.id), conversation)
set_all(fields_key(run.id), fields)
redis.call('PERSIST', owner_key(run.owner))
local active = redis.call('HINCRBY', owner_key(run.owner), 'active', 1)
local born = tell(run, 'run_enqueued', now, ',"metadata":null')
if active == 1 then
  redis.call('HSET', owner_key(run.owner), 'since', born)
end
redis.call('HSET', run_key(run.id), 'status', 'queued', 'agent', run.agent, 'owner', run.owner, 'head', run.head,
  'created', now, 'born', born, 'epoch', 0, 'seq', 0)
make_ready(run, false)
return {'OK', born}
