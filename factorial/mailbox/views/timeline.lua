#!lua flags=no-writes
-- The newest buckets of counts, up to the current one.
--
-- ARGV     agent or '' for all, length of the timeline and of its buckets in seconds
-- Answers  {now in ms, length of a bucket in seconds, beginning of the first in seconds,
--          {agent, beginning in seconds, {count, value, ...}}, ...}
--          The length is that of the longest bucket found: what was counted by the hour cannot be shown by the minute.
--          Several shorter buckets within one of this length follow each other, in no particular order.
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

-- As many buckets as the timeline is long. One more if they are longer than was asked for: otherwise an hour's bucket
-- that has just begun would be all that is shown of the last minutes.
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
