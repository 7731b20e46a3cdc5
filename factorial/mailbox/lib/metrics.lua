-- What is counted, for each agent and span of time, by the script that makes the change. A bucket of counts is named by
-- its length, by how long it is kept after its end, by its beginning (all in seconds), and by its agent: clients with
-- other settings count into other buckets, and whoever reads adds them up (timeline.lua).
local function add_to(agent, what, now)
  local start = math.floor(now / 1000 / METRICS_BUCKET) * METRICS_BUCKET
  local name = string.format('%d:%d:%d:%s', METRICS_BUCKET, METRICS_RETENTION, start, agent)
  local bucket = bucket_key(name)
  if redis.call('HINCRBY', bucket, what, 1) == 1 then
    -- The first of its kind, and perhaps the first of all: the bucket is listed, and will go by itself.
    local over = 1000 * (start + METRICS_BUCKET + METRICS_RETENTION)
    redis.call('PEXPIREAT', bucket, over)
    redis.call('ZREMRANGEBYSCORE', timeline_key(), '-inf', now)
    redis.call('ZADD', timeline_key(), over, name)
    redis.call('PEXPIREAT', timeline_key(), redis.call('ZRANGE', timeline_key(), -1, -1, 'WITHSCORES')[2])
  end
  return bucket
end

-- A run ends: it is counted, with the time since it was enqueued: the sum, and the longest.
local function add_end(run, status, now)
  local bucket = add_to(run.agent, status, now)
  local duration = math.max(0, now - tonumber(run.created_at))
  redis.call('HINCRBY', bucket, status .. '_ms', duration)
  if duration > (tonumber(redis.call('HGET', bucket, status .. '_longest')) or -1) then
    redis.call('HSET', bucket, status .. '_longest', duration)
  end
end

-- What is counted must not break a script off half-way: a parent would never hear of its child's end.
local function tally(agent, what, now)
  pcall(add_to, agent, what, now)
end

local function tally_end(run, status, now)
  pcall(add_end, run, status, now)
end
