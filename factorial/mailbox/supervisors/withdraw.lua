#!lua flags=allow-oom
-- Forget a supervisor that has ended in an orderly way, and the orders that it has not taken.
--
-- ARGV     supervisor
-- Answers  1 if it was known
-- include: lib/args.lua
local supervisor = take()
redis.call('HDEL', reports_key(), supervisor)
redis.call('DEL', orders_key(supervisor))
return redis.call('ZREM', supervisors_key(), supervisor)
