#!lua flags=allow-oom
-- Put an order into a supervisor's control mailbox, with the current time.
--
-- ARGV     supervisor, order id (the same on every try), order (JSON), ms after which it must not be obeyed any more,
--          most orders in the mailbox
-- Answers  {'OK'} | {'DUP'} | {'UNKNOWN'}: there is no such supervisor | {'FULL', orders in the mailbox}
-- include: lib/args.lua
-- include: lib/time.lua
local supervisor, id, order, patience, most = take(), take(), take(), take_number(), take_number()
if redis.call('EXISTS', order_key(id)) == 1 then
  return {'DUP'}
end
if not redis.call('ZSCORE', supervisors_key(), supervisor) then
  return {'UNKNOWN'}
end
local waiting = redis.call('LLEN', orders_key(supervisor))
if waiting >= most then
  return {'FULL', waiting}
end
redis.call('SET', order_key(id), '1', 'PX', math.max(patience, 600000))
redis.call('RPUSH', orders_key(supervisor), string.format('%.0f ', now_ms()) .. order)
if redis.call('PTTL', orders_key(supervisor)) < patience then
  redis.call('PEXPIRE', orders_key(supervisor), patience)
end
return {'OK'}
