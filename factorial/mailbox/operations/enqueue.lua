#!lua
-- Store a new run and queue it.
--
-- ARGV     id, agent, owner, head (its ids as JSON members), conversation (list), context fields (list of name, value)
-- Answers  {'OK', event id} | {'DUP', status}: there is such a run already, nothing was changed
-- Events   run_enqueued
-- include: lib/args.lua
-- include: lib/create.lua
local run = {id = take(), agent = take(), owner = take(), head = take(), crashes = 0}
local conversation = take_list()
local fields = take_list()

local born = create(run, conversation, fields, now_ms(), 'null')
if born then
  return {'OK', born}
end
return {'DUP', redis.call('HGET', run_key(run.id), 'status')}
