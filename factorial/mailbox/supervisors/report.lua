#!lua flags=allow-oom
-- Store a supervisor's report, and forget supervisors that have been silent for long.
--
-- ARGV     supervisor, report (JSON), ms of silence after which a supervisor is forgotten
-- Answers  how many were forgotten
-- include: lib/args.lua
-- include: lib/time.lua
local supervisor, report, longest_silence = take(), take(), take_number()
local now = now_ms()
redis.call('ZADD', supervisors_key(), now, supervisor)
redis.call('HSET', reports_key(), supervisor, report)
local silent = redis.call('ZRANGEBYSCORE', supervisors_key(), '-inf', now - longest_silence, 'LIMIT', 0, 100)
for _, name in ipairs(silent) do
  redis.call('ZREM', supervisors_key(), name)
  redis.call('HDEL', reports_key(), name)
end
return #silent
