#!lua flags=allow-oom
-- Give a living process a lease: from now on it may claim.
--
-- ARGV     process, lease in ms, ms within which a living process registers again (patience), its agent, about the
--          process (JSON)
-- Answers  {the ids of the runs that it holds, ...}: none for a new process
-- include: lib/args.lua
local process, lease, patience, agent, about = take(), take_number(), take(), take(), take()
redis.call('SET', lease_key(process), about, 'PX', lease)
redis.call('ZADD', processes_key(), 0, process)
redis.call('HSET', claims_key(process), 'patience', patience, 'agent', agent)
return redis.call('SMEMBERS', held_key(process))
