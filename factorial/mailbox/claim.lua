-- Take up to `count` ready runs for a worker of a living process.
--
-- ARGV     process, worker, agent, count, nonce (unique to this request), recovery limit
-- Answers  {'OK', ms until the next run is due or -1, {run, ...}} | {'NOLEASE'}: register the process first
--          run = {id, {hash fields}, {conversation}, {context fields}, {journal}, {mail}}
-- Events   run_started, when a run is taken up for the first time
--
-- The same request again (its answer was lost) gives the same runs. A wake token is passed on if work remains.
-- include: lib/args.lua
-- include: lib/run.lua
local process, worker, agent, count, nonce, recovery_limit =
  take(), take(), take(), take_number(), take(), take()

if redis.call('EXISTS', lease_key(process)) == 0 then
  return {'NOLEASE'}
end

local function contents(id)
  return {id, redis.call('HGETALL', run_key(id)), redis.call('LRANGE', conversation_key(id), 0, -1),
    redis.call('HGETALL', fields_key(id)), redis.call('HGETALL', journal_key(id)),
    redis.call('LRANGE', mail_key(id), 0, -1)}
end

local now = now_ms()
local claimed = {}

if redis.call('HGET', claims_key(process), worker) == nonce then
  for _, id in ipairs(redis.call('SMEMBERS', held_key(process))) do
    local run = load_run(id)
    if run and run.status == 'processing' and run.nonce == nonce then
      claimed[#claimed + 1] = contents(id)
    end
  end
else
  promote_due(agent, now)
  while #claimed < count do
    local id = redis.call('LPOP', ready_key(agent))
    if not id then
      break
    end
    local run = load_run(id)
    if run and run.status == 'queued' then
      redis.call('HSET', run_key(id), 'status', 'processing', 'holder', process, 'epoch', run.epoch + 1,
        'nonce', nonce, 'told', 0, 'pickups', run.pickups + 1, 'recovery_limit', recovery_limit)
      redis.call('SADD', held_key(process), id)
      if run.pickups == 0 then
        tell(run, 'run_started', now, ',"metadata":{"process":' .. cjson.encode(process) .. '}')
      end
      claimed[#claimed + 1] = contents(id)
    end
  end
  if #claimed > 0 then
    redis.call('HSET', claims_key(process), worker, nonce)
  end
end

if redis.call('LLEN', ready_key(agent)) > 0 then
  wake(agent)
end
local next_due = redis.call('ZRANGE', due_key(agent), 0, 0, 'WITHSCORES')[2]
return {'OK', next_due and math.max(0, tonumber(next_due) - now) or -1, claimed}
