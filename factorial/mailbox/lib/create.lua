-- include: lib/places.lua
-- include: lib/metrics.lua
-- Stores and queues a new run. Returns the id of its first event, or nil if the run exists: then nothing is changed.
local function create(run, conversation, fields, now, metadata)
  if redis.call('EXISTS', run_key(run.id)) == 1 then
    return nil
  end
  append_all(conversation_key(run.id), conversation)
  set_all(fields_key(run.id), fields)
  redis.call('PERSIST', owner_key(run.owner))
  local active = add_to_count(owner_key(run.owner), 'active', 1)
  local first_event = publish_about(run, 'run_enqueued', now, ',"metadata":' .. metadata)
  if active == 1 then
    redis.call('HSET', owner_key(run.owner), 'active_since', first_event)
  end
  redis.call('HSET', run_key(run.id), 'status', 'queued', 'agent', run.agent, 'owner', run.owner, 'created_at', now,
    'first_event', first_event)
  make_ready(run, false)
  tally(run.agent, 'enqueued', now)
  return first_event
end
