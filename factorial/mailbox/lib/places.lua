-- include: lib/run.lua
-- The places of runs that wait or are held (places.py), and the moves between them.

-- Makes sure that there is a wake token for an idle worker to find: something is ready.
local function wake(agent)
  if redis.call('LLEN', wake_key(agent)) == 0 then
    redis.call('RPUSH', wake_key(agent), '1')
  end
end

-- The same, if something is left in the queues.
local function wake_if_ready(agent)
  if redis.call('LLEN', ready_key(agent)) > 0 or redis.call('LLEN', suspects_key(agent)) > 0 then
    wake(agent)
  end
end

-- Queues the run, without a wake token. A new suspect concerns the processes that passed the token on: they must look
-- again.
local function add_to_queue(run, at_front)
  if is_suspect(run) then
    redis.call('RPUSH', suspects_key(run.agent), run.id)
    redis.call('DEL', passed_key(run.agent))
  else
    redis.call(at_front and 'LPUSH' or 'RPUSH', ready_key(run.agent), run.id)
  end
end

local function make_ready(run, at_front)
  add_to_queue(run, at_front)
  wake(run.agent)
end

-- Queues a parked run, at the front and without a wake token.
local function unpark(run)
  redis.call('SREM', parked_key(run.agent), run.id)
  write_run(run.id, 'status', 'queued')
  add_to_queue(run, true)
end

local function throttled_runs(run)
  return throttled_key(run.agent .. ':' .. run.owner)
end

-- Removes the oldest throttled run of this run's owner, and returns it. Runs that are gone or damaged are dropped: each
-- would use up the place of another one.
local function next_throttled(run)
  while true do
    local id = redis.pcall('ZPOPMIN', throttled_runs(run))[1]
    local found = id and load_run(id)
    if found or not id then
      return found
    end
  end
end

-- Makes the owner's next throttled run ready, if there is one: at the end of the queue, so that an owner with many
-- tasks does not overtake others.
local function unthrottle_next(run)
  local next_run = next_throttled(run)
  if next_run then
    redis.call('RPUSH', ready_key(run.agent), next_run.id)
    wake(run.agent)
  end
end

-- Removes the count of an owner that has no held and no throttled runs: `queues.lua` finds throttled runs by these
-- counts.
local function forget_idle_owner(run, count)
  if count <= 0 and redis.call('EXISTS', throttled_runs(run)) == 0 then
    redis.call('HDEL', running_key(run.agent), run.owner)
  end
end

-- The holder of this suspect may claim another one.
local function free_suspect_slot(run)
  redis.call('HDEL', claims_key(run.holder), 'suspect')
  redis.call('DEL', passed_key(run.agent))
  wake_if_ready(run.agent)
end

-- The process does not hold the run any more, so another run of the same owner may be claimed.
local function clear_holder(run, process)
  redis.call('SREM', held_key(process), run.id)
  local count = add_to_count(running_key(run.agent), run.owner, -1)
  unthrottle_next(run)
  forget_idle_owner(run, count or 1)
  if is_suspect(run) then
    free_suspect_slot(run)
  end
end

-- The run has finished a step: what it was deferred for is there again.
local function clear_deferral(run)
  if run.deferred_at ~= '' then
    write_run(run.id, 'deferred_at', '')
    run.deferred_at = ''
  end
end

-- The run has finished a step, so it did not cause the deaths of its earlier processes.
local function clear_blame(run)
  if run.recoveries > 0 then
    write_run(run.id, 'recoveries', 0, 'crashes', 0, 'strikes', 0)
    if is_suspect(run) then
      free_suspect_slot(run)
    end
    run.recoveries, run.crashes, run.strikes = 0, 0, 0
  end
end
