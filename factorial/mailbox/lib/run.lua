-- include: lib/time.lua
-- include: lib/events.lua
-- A run's hash, its events, and its unread steering.
local RUN_FIELDS = {'status', 'agent', 'owner', 'epoch', 'nonce', 'seq', 'message_number', 'holder', 'retries',
  'recoveries', 'crashes', 'strikes', 'pickups', 'cancel_requested', 'last_commit', 'recovery_limit', 'parent', 'batch',
  'started_at', 'created_at', 'deferred_at'}
local NUMBERS = {'epoch', 'seq', 'message_number', 'retries', 'recoveries', 'crashes', 'strikes', 'pickups'}

-- Returns the run as a table, or nil if there is none, or if it lacks its status, agent or owner. A field that is not
-- stored reads as '', a number as 0.
local function load_run(id)
  local values = redis.pcall('HMGET', run_key(id), unpack(RUN_FIELDS))
  if values.err or not (values[1] and values[2] and values[3]) then
    return nil
  end
  local run = {id = id}
  for i, field in ipairs(RUN_FIELDS) do
    run[field] = values[i] or ''
  end
  for _, field in ipairs(NUMBERS) do
    run[field] = tonumber(run[field]) or 0
  end
  return run
end

-- Writes fields of the run's hash: name, value, name, value, ... A value of '' or 0 removes its field: an absent field
-- reads the same.
local function write_run(id, ...)
  local written, removed = {}, {}
  for i = 1, select('#', ...), 2 do
    local name, value = select(i, ...)
    if value == '' or value == 0 then
      removed[#removed + 1] = name
    else
      written[#written + 1], written[#written + 2] = name, value
    end
  end
  if #written > 0 then
    redis.call('HSET', run_key(id), unpack(written))
  end
  if #removed > 0 then
    redis.call('HDEL', run_key(id), unpack(removed))
  end
end

-- Whether the run is held under this token (epoch and nonce).
local function is_held_by(run, epoch, nonce)
  return run ~= nil and run.status == 'processing' and run.epoch == epoch and run.nonce == nonce
end

-- Whether the run may be the one that crashes its processes. One crash says nothing about each run that the process
-- held. Runs with two or more, and no finished step in between, are executed one to a process.
local function is_suspect(run)
  return run.crashes >= 2
end

local function is_final(status)
  return status == 'completed' or status == 'failed' or status == 'cancelled'
end

-- Whether a run with this status awaits results or children, without a holder.
local function is_parked(status)
  return status == 'pending_tool_results' or status == 'pending_child_tasks'
end

-- A string as JSON. cjson escapes slashes as well, Python does not.
local function json_string(text)
  return (string.gsub(cjson.encode(text), '\\/', '/'))
end

-- The ids that every event of the run begins with, as JSON members. Built once per script, and only for an event. Events
-- of a batch that no run has spawned have no task.
local function head(run)
  if not run.head then
    run.head = '"task_id":' .. (run.id and json_string(run.id) or 'null') .. ',"owner_id":' .. json_string(run.owner)
      .. ',"agent_name":' .. json_string(run.agent)
  end
  return run.head
end

-- Publishes an event of the run that the server dates. `extra` is JSON that begins with a comma, or empty.
local function publish_about(run, event_type, now, extra)
  return publish(run.owner, '{"event_type":"' .. event_type .. '",' .. head(run)
    .. ',"timestamp":"' .. iso(now) .. '"' .. extra .. '}')
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

-- Returns the count, or nil if its key is damaged: a damaged count must not stop a run.
local function add_to_count(key, field, amount)
  local count = redis.pcall('HINCRBY', key, field, amount)
  return type(count) == 'number' and count or nil
end

-- Moves unread steering into the conversation, where the next model call finds it. Returns the messages.
local function read_mail(run, now)
  local mail = redis.call('LRANGE', mail_key(run.id), 0, -1)
  if #mail > 0 then
    append_all(conversation_key(run.id), mail)
    redis.call('DEL', mail_key(run.id))
    publish_about(run, 'run_steering_applied', now, ',"metadata":null,"data":{"messages":' .. #mail .. '}')
  end
  return mail
end
