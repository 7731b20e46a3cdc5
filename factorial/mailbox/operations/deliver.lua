#!lua
-- The result of a deferred tool call has come.
--
-- ARGV     id, tool call id, message id (the same on every try), result
-- Answers  {'OK'}: it is kept, and the run goes on when nothing else is open | {'DUP'}: there is a result already
--          | {'UNKNOWN'}: no such run, or it does not wait for this call (any more)
--
-- A result that comes before the run has parked is kept in the turn's journal, which the park reads.
-- include: lib/args.lua
-- include: lib/park.lua
local id, call, message_id, result = take(), take(), take(), take()
local key = 'tool:' .. call

local function kept()
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
local arrived = arrive(run, key, result)
if arrived then
  return kept()
elseif arrived == false then
  return {'DUP'}
elseif redis.call('HEXISTS', journal_key(id), 'expected:' .. key) == 0 then
  return {'UNKNOWN'}
end
return redis.call('HSETNX', journal_key(id), 'given:' .. key, result) == 1 and kept() or {'DUP'}
