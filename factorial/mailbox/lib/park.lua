-- include: lib/places.lua
-- Parked runs and what they await, and all runs that are due at some time.
--
-- The hash of awaited things has a field for each: '?' and its deadline (0: none) while it is open, '!' and the result
-- once it has arrived. `open` counts the former; `plan` says what to make of the results.

-- A parked run awaits results as long as one is open, and its children after that.
local function update_parked_status(run)
  local awaits = redis.call('HGETALL', awaits_key(run.id))
  for i = 1, #awaits, 2 do
    if string.sub(awaits[i], 1, 5) == 'tool:' and string.sub(awaits[i + 1], 1, 1) ~= '!' then
      return
    end
  end
  write_run(run.id, 'status', 'pending_child_tasks')
end

-- Delivers something that the run may await: `key` is 'tool:<call id>' or 'child:<task id>'. When nothing is open any
-- more, the run is queued. Returns false if a result has arrived before, and nil if the run does not await this.
local function deliver_to_parked(run, key, result)
  local known = redis.call('HGET', awaits_key(run.id), key)
  if not known then
    return nil
  elseif string.sub(known, 1, 1) == '!' then
    return false
  end
  redis.call('HSET', awaits_key(run.id), key, '!' .. result)
  if redis.call('HINCRBY', awaits_key(run.id), 'open', -1) == 0 then
    redis.call('ZREM', due_key(run.agent), run.id)
    unpark(run)
    wake(run.agent)
  elseif string.sub(key, 1, 5) == 'tool:' then
    update_parked_status(run)
  end
  return true
end

-- The deadline of something that a parked run awaits has passed. The result of a late tool is empty. A late child is
-- cancelled, because nothing will read its answer.
local function expire_awaits(run, now)
  local awaits, late, next_deadline = redis.call('HGETALL', awaits_key(run.id)), 0, nil
  for i = 1, #awaits, 2 do
    local deadline = string.sub(awaits[i + 1], 1, 1) == '?' and tonumber(string.sub(awaits[i + 1], 2)) or 0
    if deadline > now then
      next_deadline = math.min(deadline, next_deadline or deadline)
    elseif deadline > 0 then
      late = late + 1
      local child = string.match(awaits[i], '^child:(.*)$')
      redis.call('HSET', awaits_key(run.id), awaits[i], child and '!{"status":"expired"}' or '!')
      if child then
        redis.call('RPUSH', doomed_key(), child)
      end
    end
  end
  if late > 0 and redis.call('HINCRBY', awaits_key(run.id), 'open', -late) == 0 then
    unpark(run)
    return
  end
  if late > 0 then
    update_parked_status(run)
  end
  if next_deadline then
    redis.call('ZADD', due_key(run.agent), next_deadline, run.id)
  end
end

-- Queues up to 200 runs that are due, and leaves the rest to the next call. The caller sees to the wake token.
local function promote_due(agent, now)
  local due = redis.call('ZRANGEBYSCORE', due_key(agent), '-inf', now, 'LIMIT', 0, 200)
  for _, id in ipairs(due) do
    redis.call('ZREM', due_key(agent), id)
    local stored = redis.pcall('HMGET', run_key(id), 'status', 'crashes')
    local status, run = stored[1], {id = id, agent = agent, crashes = tonumber(stored[2]) or 0}
    if status == 'backoff' then
      write_run(id, 'status', 'queued')
      add_to_queue(run, false)
    elseif is_parked(status) and not pcall(expire_awaits, run, now) then
      unpark(run) -- what it awaits is damaged: the claim will say so
    end
  end
  return #due
end
