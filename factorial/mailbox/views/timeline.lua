#!lua flags=no-writes
-- What was counted lately: the newest buckets, up to the one that is under way.
--
-- ARGV     agent or '' for all, length of the timeline and of its buckets in seconds
-- Answers  {now in ms, length of a bucket in seconds, beginning of the first in seconds,
--          {agent, beginning in seconds, {count, value, ...}}, ...}
--          The buckets are as long as the longest that was counted in: what was counted by the hour cannot be told by
--          the minute. Shorter ones that lie in the same bucket follow each other, in no particular order.
-- include: lib/args.lua
-- include: lib/time.lua
local wanted, duration, wanted_length = take(), take_number(), take_number()
local now = now_ms()
local seconds = math.floor(now / 1000)

local kept, length = {}, wanted_length
for _, name in ipairs(redis.call('ZRANGEBYSCORE', timeline_key(), '(' .. now, '+inf')) do
  local size, start, agent = string.match(name, '^(%d+):%d+:(%d+):(.*)$')
  size, start = tonumber(size), tonumber(start)
  if wanted == '' or agent == wanted then
    kept[#kept + 1] = {name, agent, start}
    if start + size > seconds - duration then
      length = math.max(length, size)
    end
  end
end

-- As many as the timeline is long. One more if they are longer than was asked for: else an hour's bucket that has just
-- begun would be all that there is of the last minutes.
local count = math.ceil(duration / length) + (length > wanted_length and 1 or 0)
local first = (math.floor(seconds / length) + 1 - count) * length
local answer = {now, length, first}
for _, bucket in ipairs(kept) do
  local name, agent, start = unpack(bucket)
  if start >= first then
    answer[#answer + 1] = {agent, start, redis.call('HGETALL', bucket_key(name))}
  end
end
return answer
