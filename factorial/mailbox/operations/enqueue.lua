#!lua
-- Store a new run and queue it.
--
-- ARGV     id, agent, owner, conversation (list), context fields (list of name, value)
-- Answers  {'OK', event id} | {'DUP', status}: the run exists, nothing was changed
-- Events   run_enqueued
-- include: lib/args.lua
-- include: lib/create.lua
local run = {id = take(), agent = take(), owner = take(), crashes = 0}
local conversation = take_list()
local fields = take_list()

local first_event = create(run, conversation, fields, now_ms(), 'null')
if first_event then
  return {'OK', first_event}
end
return {'DUP', redis.call('HGET', run_key(run.id), 'status')}
