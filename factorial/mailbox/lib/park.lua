-- include: lib/run.lua
-- Runs that wait without a holder: parked ones, until what they wait for has come, and all that are due some time.

-- Whether a run with this status waits, without a holder, for results or children.
local function is_parked(status)
  return status == 'pending_tool_results' or status == 'pending_child_tasks'
end

-- As long as a result is open, that is what a parked run waits for; when none is, it waits for its children.
local function tell_of_wait(run)
  local awaited = redis.call('HGETALL', awaits_key(run.id))
  for i = 1, #awaited, 2 do
    if string.sub(awaited[i], 1, 5) == 'tool:' and string.sub(awaited[i + 1], 1, 1) ~= '!' then
      return
    end
  end
  write_run(run.id, 'status', 'pending_child_tasks')
end

-- What a parked run waits for has come, or some of it: `key` is 'tool:<call id>' or 'child:<task id>'. When nothing is
-- open any more, the run is queued. Gives false if the result is there already, and nil if it is not waited for.
local function arrive(run, key, result)
  local waiting = redis.call('HGET', awaits_key(run.id), key)
  if not waiting then
    return nil
  elseif string.sub(waiting, 1, 1) == '!' then
    return false
  end
  redis.call('HSET', awaits_key(run.id), key, '!' .. result)
  if redis.call('HINCRBY', awaits_key(run.id), 'open', -1) == 0 then
    redis.call('ZREM', due_key(run.agent), run.id)
    redis.call('SREM', parked_key(run.agent), run.id)
    write_run(run.id, 'status', 'queued')
    make_ready(run, true)
  elseif string.sub(key, 1, 5) == 'tool:' then
    tell_of_wait(run)
  end
  return true
end

-- The deadline of something that a parked run waits for is over. A result that is late is none: an empty one for a
-- tool; a child is cancelled, since nobody will read its answer.
local function expire_awaited(run, now)
  local awaited, late, next_deadline = redis.call('HGETALL', awaits_key(run.id)), 0, nil
  for i = 1, #awaited, 2 do
    local deadline = string.sub(awaited[i + 1], 1, 1) == '?' and tonumber(string.sub(awaited[i + 1], 2)) or 0
    if deadline > now then
      next_deadline = math.min(deadline, next_deadline or deadline)
    elseif deadline > 0 then
      late = late + 1
      local child = string.match(awaited[i], '^child:(.*)$')
      redis.call('HSET', awaits_key(run.id), awaited[i], child and '!{"status":"expired"}' or '!')
      if child then
        redis.call('RPUSH', doomed_key(), child)
      end
    end
  end
  if late > 0 and redis.call('HINCRBY', awaits_key(run.id), 'open', -late) == 0 then
    redis.call('SREM', parked_key(run.agent), run.id)
    write_run(run.id, 'status', 'queued')
    line_up(run, true)
    return
  end
  if late > 0 then
    tell_of_wait(run)
  end
  if next_deadline then
    redis.call('ZADD', due_key(run.agent), next_deadline, run.id)
  end
end

-- Queue what is due. Bounded: what is left over is promoted by the next call. Whoever calls it sees to the wake token.
local function promote_due(agent, now)
  local due = redis.call('ZRANGEBYSCORE', due_key(agent), '-inf', now, 'LIMIT', 0, 200)
  for _, id in ipairs(due) do
    redis.call('ZREM', due_key(agent), id)
    local run = redis.pcall('HMGET', run_key(id), 'status', 'crashes')
    local status, crashes = run[1], run[2]
    if status == 'backoff' then
      write_run(id, 'status', 'queued')
      line_up({id = id, agent = agent, crashes = tonumber(crashes) or 0}, false)
    elseif is_parked(status) then
      -- What it waits for may have been damaged: then it is queued, and the claim says so.
      if not pcall(expire_awaited, {id = id, agent = agent, crashes = tonumber(crashes) or 0}, now) then
        redis.call('SREM', parked_key(agent), id)
        write_run(id, 'status', 'queued')
        line_up({id = id, agent = agent, crashes = tonumber(crashes) or 0}, true)
      end
    end
  end
  return #due
end
