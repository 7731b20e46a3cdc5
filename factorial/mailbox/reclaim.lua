#!lua flags=allow-oom
-- Take back what dead processes held.
--
-- ARGV     most runs to take back, process that is known to be dead or '', cause (left | crashed | killed)
-- Answers  {{the runs that go on}, {the runs that are given up}, 1 if there may be more}
-- Events   task_reclaimed | run_cancelled | run_failed (crash_loop)
--
-- A lease that is missing for the first time is only noted: after an outage of the server every lease is
-- gone, and the living register again within a heartbeat. A process that its supervisor saw die is not waited for.
-- include: lib/args.lua
-- include: lib/ending.lua
local most, dead, cause = take_number(), take(), take()
local now = now_ms()
local taken, go_on, given_up = 0, {}, {}

-- How often a run may be taken back without a finished step in between when nothing says whether it is to blame. With
-- the pauses between them that takes minutes: longer than a storm of kills lasts, and in calmer times a step is finished.
local MOST_RECOVERIES = 12

-- So many times in a row a run goes on at once. A crash is some run's doing, and a process should not be lost to it
-- every second; a kill from outside mostly is not.
local AT_ONCE = cause == 'killed' and 3 or 1

-- Counts what the death says of a run. Gives the error with which the run ends, if it has come to that.
-- A strike: nothing else that the process held can be blamed.
local function blame(run, alone)
  local limit = tonumber(run.recovery_limit) or 3
  run.recoveries = run.recoveries + 1
  if alone or cause == 'crashed' and is_suspect(run) then
    run.strikes = run.strikes + 1
  end
  if cause == 'crashed' then
    run.crashes = run.crashes + 1
  end
  if run.strikes >= limit then
    return 'crash_loop: ' .. run.strikes .. (run.strikes == 1 and ' process' or ' processes')
      .. ' died with no other task to blame, and the task finished no step in between'
  elseif run.recoveries >= math.max(MOST_RECOVERIES, limit) then
    return 'crash_loop: ' .. run.recoveries
      .. ' processes in a row died while they held the task, and it finished no step in between'
  end
end

-- The pause before a run is taken up again, in ms: 1 s, 2, 4 ... 64, each more or less by up to half of it, so that
-- those who died together do not all come back together. What looks like chance is a hash of id and epoch.
local function pause(run)
  local name, hash = run.id .. ' ' .. run.epoch, 0
  for i = 1, #name do
    hash = (hash * 16807 + string.byte(name, i)) % 65521
  end
  return math.floor(1000 * 2 ^ math.min(run.recoveries - AT_ONCE - 1, 6) * (0.5 + hash / 65521))
end

local function take_back(run, process, alone)
  if is_suspect(run) then
    free_place(run)
  end
  local error_text = cause ~= 'left' and blame(run, alone) or nil
  run.epoch = run.epoch + 1
  redis.call('HSET', run_key(run.id), 'holder', '', 'epoch', run.epoch,
    'recoveries', run.recoveries, 'crashes', run.crashes, 'strikes', run.strikes)
  if run.cancel == '1' then
    finish(run, 'cancelled', now, '')
    return
  elseif error_text then
    refuse_mail(run, 'failed', now)
    tell(run, 'run_failed', now, ',"metadata":null,"error":"' .. error_text .. '"')
    finish(run, 'failed', now, error_text)
    given_up[#given_up + 1] = run.id
    return
  end
  go_on[#go_on + 1] = run.id
  tell(run, 'task_reclaimed', now, ',"metadata":null,"data":{"process":' .. cjson.encode(process)
    .. ',"cause":"' .. cause .. '","recoveries":' .. run.recoveries .. '}')
  if cause ~= 'left' then
    tally(run.agent, 'recovered', now)
  end
  if cause == 'left' or run.recoveries <= AT_ONCE then
    redis.call('HSET', run_key(run.id), 'status', 'queued')
    make_ready(run, true)
  else
    redis.call('HSET', run_key(run.id), 'status', 'backoff')
    redis.call('ZADD', due_key(run.agent), now + pause(run), run.id)
  end
end

local function bury(process)
  local held = redis.call('SCARD', held_key(process))
  local alone = held == 1 and redis.call('HEXISTS', claims_key(process), 'in_parts') == 0
  if held > most - taken then
    redis.call('HSET', claims_key(process), 'in_parts', 1) -- the last one of them was not alone
  end
  for _, id in ipairs(redis.call('SRANDMEMBER', held_key(process), most - taken)) do
    local run = load_run(id)
    if run and run.status == 'processing' and run.holder == process then
      take_back(run, process, alone)
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
return {go_on, given_up, taken >= most and 1 or 0}
