#!lua
-- The result of a deferred tool call has come.
--
-- ARGV     id, tool call id, result
-- Answers  {'OK'}: it is kept, and the run goes on when nothing else is open | {'DUP'}: there is a result already
--          | {'UNKNOWN'}: no such run, or it does not wait for this call (any more)
--
-- A result that comes before the run has parked is kept in the turn's journal, which the park reads.
-- include: lib/args.lua
-- include: lib/run.lua
local id, call, result = take(), take(), take()
local key = 'tool:' .. call

local run = load_run(id)
if not run then
  return {'UNKNOWN'}
end
local arrived = arrive(run, key, result)
if arrived then
  return {'OK'}
elseif arrived == false then
  return {'DUP'}
elseif redis.call('HEXISTS', journal_key(id), key .. '/expected') == 0 then
  return {'UNKNOWN'}
end
return {redis.call('HSETNX', journal_key(id), key .. '/given', result) == 1 and 'OK' or 'DUP'}
