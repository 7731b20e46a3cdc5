-- Counts, per agent and span of time, what the script changes. A bucket of counts is named by its length, the time for
-- which it is kept after its end, its beginning (all in seconds), and its agent. Clients with other settings count in
-- other buckets, and timeline.lua adds them up.
local function add_to(agent, what, now)
  local start = math.floor(now / 1000 / METRICS_BUCKET) * METRICS_BUCKET
  local name = string.format('%d:%d:%d:%s', METRICS_BUCKET, METRICS_RETENTION, start, agent)
  local bucket = bucket_key(name)
  if redis.call('HINCRBY', bucket, what, 1) == 1 then
    -- The first of its kind, and perhaps the first of the bucket: list the bucket, and let it expire.
    local over = 1000 * (start + METRICS_BUCKET + METRICS_RETENTION)
    redis.call('PEXPIREAT', bucket, over)
    redis.call('ZREMRANGEBYSCORE', timeline_key(), '-inf', now)
    redis.call('ZADD', timeline_key(), over, name)
    redis.call('PEXPIREAT', timeline_key(), redis.call('ZRANGE', timeline_key(), -1, -1, 'WITHSCORES')[2])
  end
  return bucket
end

-- The end of a run is counted with the time since it was enqueued: the sum, and the longest.
local function add_end(run, status, now)
  local bucket = add_to(run.agent, status, now)
  local duration = math.max(0, now - tonumber(run.created_at))
  redis.call('HINCRBY', bucket, status .. '_ms', duration)
  if duration > (tonumber(redis.call('HGET', bucket, status .. '_longest')) or -1) then
    redis.call('HSET', bucket, status .. '_longest', duration)
  end
end

-- Counting must not abort the script: a parent would never be notified of its child's end.
local function tally(agent, what, now)
  pcall(add_to, agent, what, now)
end

local function tally_end(run, status, now)
  pcall(add_end, run, status, now)
end
