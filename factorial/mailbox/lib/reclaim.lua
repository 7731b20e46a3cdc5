-- include: lib/ending.lua
-- Takes a run from the process that holds it, and judges the run by the cause: `left`, `crashed` or `killed`
-- (lease.py: Cause).

-- How often a run may be reclaimed without a finished step in between when nothing says whether it is to blame. With
-- the pauses between them, this takes minutes: longer than a storm of kills lasts. In calmer times a step is finished.
local MOST_RECOVERIES = 12

-- How often in a row a run goes on at once. A crash is caused by some run, and must not cost a process every second; a
-- kill from outside mostly is not.
local function most_at_once(cause)
  return cause == 'killed' and 3 or 1
end

-- Counts what the death says about a run. Returns the error with which the run ends, if it ends.
-- A strike: the process held nothing else that can be blamed.
local function blame(run, cause, alone)
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

-- The pause before a run is queued again, in ms: 1 s, 2, 4 ... 64, each more or less by up to half, so that runs of one
-- dead process do not all come back together. The jitter is a hash of id and epoch: scripts have no random numbers.
local function pause(run, cause)
  local name, hash = run.id .. ' ' .. run.epoch, 0
  for i = 1, #name do
    hash = (hash * 16807 + string.byte(name, i)) % 65521
  end
  return math.floor(1000 * 2 ^ math.min(run.recoveries - most_at_once(cause) - 1, 6) * (0.5 + hash / 65521))
end

-- The run is queued again, backs off, or ends. `alone`: the process held nothing else. Returns 'go_on', 'given_up' or
-- 'cancelled'.
local function reclaim(run, process, cause, alone, now)
  clear_holder(run, process)
  local error_text = cause ~= 'left' and blame(run, cause, alone) or nil
  run.epoch = run.epoch + 1
  write_run(run.id, 'holder', '', 'epoch', run.epoch,
    'recoveries', run.recoveries, 'crashes', run.crashes, 'strikes', run.strikes)
  if run.cancel_requested == '1' then
    finish(run, 'cancelled', now, '')
    return 'cancelled'
  elseif error_text then
    refuse_mail(run, 'failed', now)
    publish_about(run, 'run_failed', now, ',"metadata":null,"error":"' .. error_text .. '"')
    finish(run, 'failed', now, error_text)
    return 'given_up'
  end
  publish_about(run, 'task_reclaimed', now, ',"metadata":null,"data":{"process":' .. cjson.encode(process)
    .. ',"cause":"' .. cause .. '","recoveries":' .. run.recoveries .. '}')
  if cause ~= 'left' then
    tally(run.agent, 'recovered', now)
  end
  if cause == 'left' or run.recoveries <= most_at_once(cause) then
    write_run(run.id, 'status', 'queued')
    make_ready(run, true)
  else
    write_run(run.id, 'status', 'backoff')
    redis.call('ZADD', due_key(run.agent), now + pause(run, cause), run.id)
  end
  return 'go_on'
end

-- The same for an id in the set of a process's held runs, which is removed in any case. Returns nil if the process does
-- not hold the run, and 'damaged' if the keys of the run are damaged: that must not affect the other runs.
local function reclaim_from(process, id, cause, alone, now)
  local run, outcome = load_run(id), nil
  if run and run.status == 'processing' and run.holder == process then
    local whole, answer = pcall(reclaim, run, process, cause, alone, now)
    outcome = whole and answer or 'damaged'
  end
  redis.call('SREM', held_key(process), id)
  return outcome
end
