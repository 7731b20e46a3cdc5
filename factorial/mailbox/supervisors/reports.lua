#!lua flags=no-writes
-- The latest report of each supervisor, and its age.
--
-- ARGV     none
-- Answers  {supervisor, ms since its report, the report, ...}
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
