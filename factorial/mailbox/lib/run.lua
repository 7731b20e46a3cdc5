-- include: lib/time.lua
-- include: lib/events.lua
-- include: lib/metrics.lua
-- A run's hash, and the ways out of being held.
local RUN_FIELDS = {'status', 'agent', 'owner', 'head', 'epoch', 'nonce', 'seq', 'told', 'holder',
  'retries', 'recoveries', 'crashes', 'strikes', 'pickups', 'cancel', 'closed', 'recovery_limit', 'parent', 'batch', 'started',
  'created'}

-- The run as a table, or nil if there is none.
local function load_run(id)
  local values = redis.call('HMGET', run_key(id), unpack(RUN_FIELDS))
  if not values[1] then
    return nil
  end
  local run = {id = id}
  for i, field in ipairs(RUN_FIELDS) do
    run[field] = values[i] or ''
  end
  for _, field in ipairs({'epoch', 'seq', 'told', 'retries', 'recoveries', 'crashes', 'strikes', 'pickups'}) do
    run[field] = tonumber(run[field]) or 0
  end
  return run
end

-- Whether the token (epoch and nonce) is the one under which the run is held now.
local function is_held_by(run, epoch, nonce)
  return run ~= nil and run.status == 'processing' and run.epoch == epoch and run.nonce == nonce
end

-- Whether it may be this run that its processes crash of. One crash says nothing of each run that was there; from the
-- second on, with no finished step between them, such runs are executed apart from each other: one in a process.
local function is_suspect(run)
  return run.crashes >= 2
end

local function is_final(status)
  return status == 'completed' or status == 'failed' or status == 'cancelled'
end

-- An event of the run that only the server can date. `extra` is JSON that begins with a comma, or empty.
local function tell(run, event_type, now, extra)
  return publish(run.owner, '{"event_type":"' .. event_type .. '",' .. run.head
    .. ',"timestamp":"' .. iso(now) .. '"' .. extra .. '}')
end

-- Whether a run with this status waits, without a holder, for results or children.
local function is_parked(status)
  return status == 'pending_tool_results' or status == 'pending_child_tasks'
end

local function append_all(key, items)
  for first = 1, #items, 500 do
    redis.call('RPUSH', key, unpack(items, first, math.min(first + 499, #items)))
  end
end

local function set_all(key, pairs_list)
  for first = 1, #pairs_list, 500 do
    redis.call('HSET', key, unpack(pairs_list, first, math.min(first + 499, #pairs_list)))
  end
end

-- Something is ready: make sure that one token is there for an idle worker to find.
local function wake(agent)
  if redis.call('LLEN', wake_key(agent)) == 0 then
    redis.call('RPUSH', wake_key(agent), '1')
  end
end

-- Into the queue, or to the suspects. These are news for whoever could not take those that waited before.
local function line_up(run, at_front)
  if is_suspect(run) then
    redis.call('RPUSH', suspects_key(run.agent), run.id)
    redis.call('DEL', passed_key(run.agent))
  else
    redis.call(at_front and 'LPUSH' or 'RPUSH', ready_key(run.agent), run.id)
  end
end

local function make_ready(run, at_front)
  line_up(run, at_front)
  wake(run.agent)
end

-- The same for what may have been left in the queue.
local function wake_if_ready(agent)
  if redis.call('LLEN', ready_key(agent)) > 0 or redis.call('LLEN', suspects_key(agent)) > 0 then
    wake(agent)
  end
end

-- The holder of this suspect may take the next one.
local function free_place(run)
  redis.call('HDEL', claims_key(run.holder), 'suspect')
  redis.call('DEL', passed_key(run.agent))
  wake_if_ready(run.agent)
end

-- The run has finished a step: it is not what its processes died of.
local function acquit(run)
  if run.recoveries > 0 then
    redis.call('HSET', run_key(run.id), 'recoveries', 0, 'crashes', 0, 'strikes', 0)
    if is_suspect(run) then
      free_place(run)
    end
    run.recoveries, run.crashes, run.strikes = 0, 0, 0
  end
end

-- What a parked run waits for has come, or some of it: `key` is 'tool:<call id>' or 'child:<task id>'. When nothing is
-- open any more, the run is queued. Gives false if the result is there already, and nil if it is not waited for.
local function arrive(run, key, result)
  local waiting = redis.call('HGET', awaited_key(run.id), key)
  if not waiting then
    return nil
  elseif string.sub(waiting, 1, 1) == '!' then
    return false
  end
  redis.call('HSET', awaited_key(run.id), key, '!' .. result)
  if redis.call('HINCRBY', awaited_key(run.id), 'open', -1) == 0 then
    redis.call('ZREM', due_key(run.agent), run.id)
    redis.call('SREM', parked_key(run.agent), run.id)
    redis.call('HSET', run_key(run.id), 'status', 'queued')
    make_ready(run, true)
  end
  return true
end

-- The deadline of something that a parked run waits for is over. A result that is late is none: an empty one for a
-- tool; a child is cancelled, since nobody will read its answer.
local function expire_awaited(run, now)
  local awaited, late, next_deadline = redis.call('HGETALL', awaited_key(run.id)), 0, nil
  for i = 1, #awaited, 2 do
    local deadline = string.sub(awaited[i + 1], 1, 1) == '?' and tonumber(string.sub(awaited[i + 1], 2)) or 0
    if deadline > now then
      next_deadline = math.min(deadline, next_deadline or deadline)
    elseif deadline > 0 then
      late = late + 1
      local child = string.match(awaited[i], '^child:(.*)$')
      redis.call('HSET', awaited_key(run.id), awaited[i], child and '!{"status":"expired"}' or '!')
      if child then
        redis.call('RPUSH', doomed_key(), child)
      end
    end
  end
  if late > 0 and redis.call('HINCRBY', awaited_key(run.id), 'open', -late) == 0 then
    redis.call('SREM', parked_key(run.agent), run.id)
    redis.call('HSET', run_key(run.id), 'status', 'queued')
    line_up(run, true)
  elseif next_deadline then
    redis.call('ZADD', due_key(run.agent), next_deadline, run.id)
  end
end

-- Queue what is due. Bounded: what is left over is promoted by the next call. Whoever calls it sees to the wake token.
local function promote_due(agent, now)
  local due = redis.call('ZRANGEBYSCORE', due_key(agent), '-inf', now, 'LIMIT', 0, 200)
  for _, id in ipairs(due) do
    redis.call('ZREM', due_key(agent), id)
    local status, crashes = unpack(redis.call('HMGET', run_key(id), 'status', 'crashes'))
    if status == 'backoff' then
      redis.call('HSET', run_key(id), 'status', 'queued')
      line_up({id = id, agent = agent, crashes = tonumber(crashes) or 0}, false)
    elseif is_parked(status) then
      expire_awaited({id = id, agent = agent, crashes = tonumber(crashes) or 0}, now)
    end
  end
  return #due
end

-- What was posted enters the conversation, where the next model call finds it. Gives the messages.
local function read_mail(run, now)
  local mail = redis.call('LRANGE', mail_key(run.id), 0, -1)
  if #mail > 0 then
    append_all(conversation_key(run.id), mail)
    redis.call('DEL', mail_key(run.id))
    tell(run, 'run_steering_applied', now, ',"metadata":null,"data":{"messages":' .. #mail .. '}')
  end
  return mail
end

-- What a run that has ended tells the one that waits for it, as JSON.
local function outcome(id, status, error_text)
  if status == 'completed' then
    return '{"status":"completed","output":' .. (redis.call('HGET', fields_key(id), 'output') or 'null') .. '}'
  end
  return '{"status":"' .. status .. '","error":' .. cjson.encode(error_text) .. '}'
end

-- One more of a batch's children has ended. Each whole percent is told once, so a batch has 100 events at the most.
local function count_in_batch(run, parent, status, now)
  local key = batch_key(run.batch)
  local ended, total = redis.call('HINCRBY', key, 'ended', 1), tonumber(redis.call('HGET', key, 'total'))
  redis.call('HINCRBY', key, status, 1)
  local percent = math.floor(100 * ended / total)
  if parent and percent > math.floor(100 * (ended - 1) / total) then
    local function tell_of_batch(event_type, state)
      tell(parent, event_type, now, ',"metadata":null,"batch_id":"' .. run.batch .. '","progress":' .. percent
        .. ',"completed_tasks":' .. ended .. ',"total_tasks":' .. total .. ',"status":"' .. state .. '"')
    end
    local cancelled = parent.status == 'cancelled'
    tell_of_batch('batch_progress', ended < total and 'active' or cancelled and 'cancelled' or 'completed')
    if ended == total then
      tell_of_batch(cancelled and 'batch_cancelled' or 'batch_completed', cancelled and 'cancelled' or 'completed')
    end
  end
  if ended == total then
    redis.call('PEXPIRE', key, EVENTS_TTL_MS)
  end
end

-- A child has ended: its parent hears of it, once, if it waits for it or will.
local function tell_parent(run, status, now, error_text)
  local parent = load_run(run.parent)
  redis.call('SREM', children_key(run.parent), run.id)
  if run.batch ~= '' then
    count_in_batch(run, parent, status, now)
  end
  if parent and is_parked(parent.status) then
    arrive(parent, 'child:' .. run.id, outcome(run.id, status, error_text))
  end
end

-- Steering that nobody has read when the run ends is answered, so that no accepted message vanishes.
local function refuse_mail(run, status, now)
  if redis.call('DEL', mail_key(run.id)) == 1 then
    tell(run, 'run_steering_failed', now, ',"metadata":null,"error":"the run ended (' .. status
      .. ') before the steering messages were read"')
  end
end

-- The run ends.
local function finish(run, status, now, error_text)
  redis.call('HSET', run_key(run.id), 'status', status, 'holder', '', 'ended', now, 'error', error_text)
  refuse_mail(run, status, now)
  if status == 'cancelled' then
    tell(run, 'run_cancelled', now, ',"metadata":null')
    append_all(doomed_key(), redis.call('SMEMBERS', children_key(run.id)))
  end
  redis.call('DEL', journal_key(run.id), seen_key(run.id), awaited_key(run.id), children_key(run.id))
  redis.call('ZADD', ended_key(run.agent .. ':' .. status), now, run.id)
  tally_end(run, status, now)
  if redis.call('HINCRBY', owner_key(run.owner), 'active', -1) <= 0 then
    redis.call('PEXPIRE', owner_key(run.owner), EVENTS_TTL_MS)
  end
  if run.parent ~= '' then
    tell_parent(run, status, now, error_text)
  end
end
