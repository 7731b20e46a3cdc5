-- include: lib/park.lua
-- include: lib/metrics.lua
-- include: lib/batch.lua
-- The end of a run, and who is notified of it.

-- What an ended run returns to the parent that awaits it, as JSON.
local function child_result(id, status, error_text)
  if status == 'completed' then
    return '{"status":"completed","output":' .. (redis.call('HGET', fields_key(id), 'output') or 'null') .. '}'
  end
  return '{"status":"' .. status .. '","error":' .. cjson.encode(error_text) .. '}'
end

-- A run has ended: it is counted in its batch, and its parent gets the result, once, if it awaits the run. The parent
-- gets it even if the batch is damaged.
local function notify_others(run, status, now, error_text)
  local parent = run.parent ~= '' and load_run(run.parent) or nil
  if run.parent ~= '' then
    redis.pcall('SREM', children_key(run.parent), run.id)
  end
  if run.batch ~= '' then
    pcall(count_end, run, parent, status, now)
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
  notify_others(run, status, now, error_text)
end
