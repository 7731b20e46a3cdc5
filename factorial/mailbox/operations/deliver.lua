#!lua
-- Deliver the result of a deferred tool call.
--
-- ARGV     id, tool call id, message id (the same on every try), result
-- Answers  {'OK'}: it is kept, and the run goes on when nothing else is open | {'DUP'}: there is a result already
--          | {'UNKNOWN'}: there is no such run, or it does not await this call (any more)
--
-- A result that arrives before the run has parked is kept in the journal, where the park finds it.
-- include: lib/args.lua
-- include: lib/park.lua
local id, call, message_id, result = take(), take(), take(), take()
local key = 'tool:' .. call

local function accept()
  redis.call('SET', published_key(message_id), '1', 'PX', 600000)
  return {'OK'}
end
if redis.call('EXISTS', published_key(message_id)) == 1 then
  return {'OK'}
end

local run = load_run(id)
if not run then
  return {'UNKNOWN'}
end
local delivered = deliver_to_parked(run, key, result)
if delivered then
  return accept()
elseif delivered == false then
  return {'DUP'}
elseif redis.call('HEXISTS', journal_key(id), 'expected:' .. key) == 0 then
  return {'UNKNOWN'}
end
return redis.call('HSETNX', journal_key(id), 'delivered:' .. key, result) == 1 and accept() or {'DUP'}
