#!lua flags=allow-oom
-- A supervisor has ended in an orderly way: nothing is left of it, nor of orders that it has not taken up.
--
-- ARGV     supervisor
-- Answers  1 if it was known
-- include: lib/args.lua
local supervisor = take()
redis.call('HDEL', reports_key(), supervisor)
redis.call('DEL', orders_key(supervisor))
return redis.call('ZREM', supervisors_key(), supervisor)
