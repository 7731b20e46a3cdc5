-- include: lib/park.lua
-- include: lib/metrics.lua
-- The end of a run, and who is notified of it.

-- What an ended run returns to the parent that awaits it, as JSON.
local function child_result(id, status, error_text)
  if status == 'completed' then
    return '{"status":"completed","output":' .. (redis.call('HGET', fields_key(id), 'output') or 'null') .. '}'
  end
  return '{"status":"' .. status .. '","error":' .. cjson.encode(error_text) .. '}'
end

-- Counts the end of a run in its batch. Each whole percent is published once, so a batch has about 100 events at most.
-- The batch ends with its last run; if its parent was cancelled, only some of its runs may have been spawned. If the
-- parent has ended and was removed, the batch still has what its events say of it.
local function count_in_batch(run, parent, status, now)
  local key = batch_key(run.batch)
  local owner, agent = unpack(redis.call('HMGET', key, 'owner', 'parent_agent'))
  local publisher = parent or owner and agent and {id = run.parent, owner = owner, agent = agent}
  local ended, active = redis.call('HINCRBY', key, 'ended', 1), redis.call('HINCRBY', key, 'active', -1)
  local total = tonumber(redis.call('HGET', key, 'total')) or ended
  redis.call('HINCRBY', key, status, 1)
  local cancelled = parent and parent.status == 'cancelled' or not parent and ended < total
  local over = ended == total or cancelled and active <= 0
  local state = not over and 'active' or cancelled and 'cancelled' or 'completed'
  local percent = math.floor(100 * ended / total)
  local function publish_about_batch(event_type)
    publish_about(publisher, event_type, now, ',"metadata":null,"batch_id":"' .. run.batch .. '","progress":' .. percent
      .. ',"completed_tasks":' .. ended .. ',"total_tasks":' .. total .. ',"status":"' .. state .. '"')
  end
  if publisher and (over or percent > math.floor(100 * (ended - 1) / total)) then
    publish_about_batch('batch_progress')
  end
  if publisher and over then
    publish_about_batch('batch_' .. state)
  end
  if active <= 0 then
    redis.call('PEXPIRE', key, EVENTS_TTL_MS)
  end
end

-- A child has ended: its parent gets the result, once, if it awaits the child.
local function notify_parent(run, status, now, error_text)
  local parent = load_run(run.parent)
  redis.pcall('SREM', children_key(run.parent), run.id)
  if run.batch ~= '' then
    pcall(count_in_batch, run, parent, status, now) -- the parent gets the result even if the batch is damaged
  end
  if parent and is_parked(parent.status) then
    deliver_to_parked(parent, 'child:' .. run.id, child_result(run.id, status, error_text))
  end
end

-- Publishes that unread steering was rejected because the run ends, so that no accepted message disappears.
local function refuse_mail(run, status, now)
  if redis.call('DEL', mail_key(run.id)) == 1 then
    publish_about(run, 'run_steering_failed', now, ',"metadata":null,"error":"the run ended (' .. status
      .. ') before the steering messages were read"')
  end
end

-- The run ends. A caller that ends it as completed or failed refuses its mail and publishes its end before.
local function finish(run, status, now, error_text)
  write_run(run.id, 'status', status, 'ended_at', now, 'error', error_text, 'holder', '', 'message_number', '',
    'recovery_limit', '', 'deferred_at', '')
  if run.deferred_at ~= '' then
    redis.call('HDEL', deferred_key(run.agent), run.id)
  end
  if status == 'cancelled' then
    refuse_mail(run, status, now)
    publish_about(run, 'run_cancelled', now, ',"metadata":null')
    append_all(doomed_key(), redis.call('SMEMBERS', children_key(run.id)))
  end
  redis.call('DEL', keys_of_active_run(run.id))
  redis.call('ZADD', ended_key(run.agent .. ':' .. status), now, run.id)
  tally_end(run, status, now)
  local active = add_to_count(owner_key(run.owner), 'active', -1)
  if active and active <= 0 then
    redis.call('PEXPIRE', owner_key(run.owner), EVENTS_TTL_MS)
  end
  if run.parent ~= '' then
    notify_parent(run, status, now, error_text)
  end
end
