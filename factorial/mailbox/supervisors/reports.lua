#!lua flags=no-writes
-- What the supervisors have told, and how long ago.
--
-- ARGV     none
-- Answers  {supervisor, ms since it was last heard of, its report, ...}
-- include: lib/time.lua
local now = now_ms()
local answer = {}
local heard = redis.call('ZRANGE', supervisors_key(), 0, -1, 'WITHSCORES')
for i = 1, #heard, 2 do
  local report = redis.call('HGET', reports_key(), heard[i])
  if report then
    answer[#answer + 1] = heard[i]
    answer[#answer + 1] = now - tonumber(heard[i + 1])
    answer[#answer + 1] = report
  end
end
return answer
