#!lua flags=allow-oom
-- Take back what dead processes held.
--
-- ARGV     most runs to take back, process that is known to be dead or ''
-- Answers  {runs taken back, 1 if there may be more}
-- Events   task_reclaimed | run_cancelled | run_failed (crash_loop)
--
-- A lease that is missing for the first time is only noted: after an outage of the server every lease is
-- gone, and the living register again within a heartbeat. A process that its supervisor saw die is not waited for.
-- include: lib/args.lua
-- include: lib/run.lua
local most, dead = take_number(), take()
local now = now_ms()
local taken = 0

local function take_back(run, process)
  local recoveries = run.recoveries + 1
  local limit = tonumber(run.recovery_limit) or 3
  if run.cancel == '1' then
    redis.call('HSET', run_key(run.id), 'epoch', run.epoch + 1)
    finish(run, 'cancelled', now, '')
  elseif recoveries > limit then
    local text = 'crash_loop: ' .. recoveries .. ' processes in a row died while they held the task'
    redis.call('HSET', run_key(run.id), 'epoch', run.epoch + 1)
    tell(run, 'run_failed', now, ',"metadata":null,"error":"' .. text .. '"')
    finish(run, 'failed', now, text)
  else
    redis.call('HSET', run_key(run.id), 'status', recoveries == 1 and 'queued' or 'backoff', 'holder', '',
      'epoch', run.epoch + 1, 'recoveries', recoveries)
    tell(run, 'task_reclaimed', now, ',"metadata":null,"data":{"process":' .. cjson.encode(process)
      .. ',"recoveries":' .. recoveries .. '}')
    if recoveries == 1 then
      make_ready(run, true)
    else
      redis.call('ZADD', due_key(run.agent), now + 1000 * 2 ^ math.min(recoveries - 2, 6), run.id)
    end
  end
end

local function bury(process)
  for _, id in ipairs(redis.call('SRANDMEMBER', held_key(process), most - taken)) do
    local run = load_run(id)
    if run and run.status == 'processing' and run.holder == process then
      take_back(run, process)
      taken = taken + 1
    end
    redis.call('SREM', held_key(process), id)
  end
  if redis.call('SCARD', held_key(process)) == 0 then
    local agent = redis.call('HGET', claims_key(process), 'agent')
    if agent then
      wake_if_ready(agent) -- it may have died with the wake token in hand
    end
    redis.call('ZREM', processes_key(), process)
    redis.call('DEL', signals_key(process), claims_key(process))
  end
end

if dead ~= '' then
  redis.call('DEL', lease_key(dead))
  bury(dead)
else
  for _, process in ipairs(redis.call('ZRANGE', processes_key(), 0, -1)) do
    if taken >= most then
      break
    end
    if redis.call('EXISTS', lease_key(process)) == 0 then
      local missing_since = tonumber(redis.call('ZSCORE', processes_key(), process))
      if missing_since == 0 then
        redis.call('ZADD', processes_key(), now, process)
      elseif now - missing_since >= (tonumber(redis.call('HGET', claims_key(process), 'patience')) or 0) then
        bury(process)
      end
    end
  end
end
return {taken, taken >= most and 1 or 0}
