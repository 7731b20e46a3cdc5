-- include: lib/park.lua
-- include: lib/metrics.lua
-- The end of a run, and who hears of it.

-- What a run that has ended tells the one that waits for it, as JSON.
local function outcome(id, status, error_text)
  if status == 'completed' then
    return '{"status":"completed","output":' .. (redis.call('HGET', fields_key(id), 'output') or 'null') .. '}'
  end
  return '{"status":"' .. status .. '","error":' .. cjson.encode(error_text) .. '}'
end

-- One more of a batch's children has ended. Each whole percent is told once, so a batch has some 100 events at the most.
-- It is over with the last of them; if its parent was cancelled, that may have spawned only some. The parent may have
-- ended long ago, and be gone: the batch remembers what its events say of it.
local function count_in_batch(run, parent, status, now)
  local key = batch_key(run.batch)
  local owner, agent = unpack(redis.call('HMGET', key, 'owner', 'parent_agent'))
  local teller = parent or owner and agent and {id = run.parent, owner = owner, agent = agent}
  local ended, active = redis.call('HINCRBY', key, 'ended', 1), redis.call('HINCRBY', key, 'active', -1)
  local total = tonumber(redis.call('HGET', key, 'total')) or ended
  redis.call('HINCRBY', key, status, 1)
  local cancelled = parent and parent.status == 'cancelled' or not parent and ended < total
  local over = ended == total or cancelled and active <= 0
  local state = not over and 'active' or cancelled and 'cancelled' or 'completed'
  local percent = math.floor(100 * ended / total)
  local function tell_of_batch(event_type)
    tell(teller, event_type, now, ',"metadata":null,"batch_id":"' .. run.batch .. '","progress":' .. percent
      .. ',"completed_tasks":' .. ended .. ',"total_tasks":' .. total .. ',"status":"' .. state .. '"')
  end
  if teller and (over or percent > math.floor(100 * (ended - 1) / total)) then
    tell_of_batch('batch_progress')
  end
  if teller and over then
    tell_of_batch('batch_' .. state)
  end
  if active <= 0 then
    redis.call('PEXPIRE', key, EVENTS_TTL_MS)
  end
end

-- A child has ended: its parent hears of it, once, if it waits for it or will.
local function tell_parent(run, status, now, error_text)
  local parent = load_run(run.parent)
  redis.pcall('SREM', children_key(run.parent), run.id)
  if run.batch ~= '' then
    pcall(count_in_batch, run, parent, status, now) -- if it is damaged, the parent hears of the child all the same
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

-- The run ends. Who ends it as completed or failed tells so, and before that refuses its mail.
local function finish(run, status, now, error_text)
  write_run(run.id, 'status', status, 'ended_at', now, 'error', error_text, 'holder', '', 'message_number', '',
    'recovery_limit', '')
  if status == 'cancelled' then
    refuse_mail(run, status, now)
    tell(run, 'run_cancelled', now, ',"metadata":null')
    append_all(doomed_key(), redis.call('SMEMBERS', children_key(run.id)))
  end
  redis.call('DEL', journal_key(run.id), seen_key(run.id), awaits_key(run.id), children_key(run.id))
  redis.call('ZADD', ended_key(run.agent .. ':' .. status), now, run.id)
  tally_end(run, status, now)
  local active = add_to_count(owner_key(run.owner), 'active', -1)
  if active and active <= 0 then
    redis.call('PEXPIRE', owner_key(run.owner), EVENTS_TTL_MS)
  end
  if run.parent ~= '' then
    tell_parent(run, status, now, error_text)
  end
end
