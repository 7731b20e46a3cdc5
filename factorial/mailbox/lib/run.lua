-- include: lib/time.lua
-- include: lib/events.lua
-- A run's hash, its place in the queues, and what it has to read.
local RUN_FIELDS = {'status', 'agent', 'owner', 'epoch', 'nonce', 'seq', 'message_number', 'holder', 'retries',
  'recoveries', 'crashes', 'strikes', 'pickups', 'cancel_requested', 'last_commit', 'recovery_limit', 'parent', 'batch',
  'started_at', 'created_at'}
local NUMBERS = {'epoch', 'seq', 'message_number', 'retries', 'recoveries', 'crashes', 'strikes', 'pickups'}

-- The run as a table, or nil if there is none, or if it lacks its status, agent or owner. A field that is not stored
-- reads as '', a number as 0.
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

-- Write fields of the run's hash: name, value, name, value, ... What is '' or 0 is removed, since it reads the same.
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

-- A string as JSON. cjson also escapes slashes, which Python does not.
local function json_string(text)
  return (string.gsub(cjson.encode(text), '\\/', '/'))
end

-- The ids that every event of the run begins with, as JSON members. Built once in a script, and only for an event.
local function head(run)
  if not run.head then
    run.head = '"task_id":' .. json_string(run.id) .. ',"owner_id":' .. json_string(run.owner)
      .. ',"agent_name":' .. json_string(run.agent)
  end
  return run.head
end

-- An event of the run that only the server can date. `extra` is JSON that begins with a comma, or empty.
local function tell(run, event_type, now, extra)
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

-- Gives the count, or nil if its key is damaged: no run is to be lost for the sake of a count.
local function add_to_count(key, field, amount)
  local count = redis.pcall('HINCRBY', key, field, amount)
  return type(count) == 'number' and count or nil
end

local function throttled_runs(run)
  return throttled_key(run.agent .. ':' .. run.owner)
end

-- Takes the oldest of them out, past those that are gone or damaged: these would take the others' place with them.
local function next_throttled(run)
  while true do
    local id = redis.pcall('ZPOPMIN', throttled_runs(run))[1]
    local found = id and load_run(id)
    if found or not id then
      return found
    end
  end
end

-- One of the runs that wait because their owner has so many already is ready again, if there is one: at the end of the
-- queue, so that an owner with many does not pass others by.
local function let_next_in(run)
  local next_run = next_throttled(run)
  if next_run then
    redis.call('RPUSH', ready_key(run.agent), next_run.id)
    wake(run.agent)
  end
end

-- The count of an owner of whom nothing is held, and nothing waits for that, is removed: `queues.lua` finds by these
-- counts whose runs wait.
local function forget_idle_owner(run, count)
  if count <= 0 and redis.call('EXISTS', throttled_runs(run)) == 0 then
    redis.call('HDEL', running_key(run.agent), run.owner)
  end
end

-- The process holds the run no more: another one of the same owner may be taken up.
local function let_go(run, process)
  redis.call('SREM', held_key(process), run.id)
  local count = add_to_count(running_key(run.agent), run.owner, -1)
  let_next_in(run)
  forget_idle_owner(run, count or 1)
  if is_suspect(run) then
    free_place(run)
  end
end

-- The run has finished a step: it is not what its processes died of.
local function acquit(run)
  if run.recoveries > 0 then
    write_run(run.id, 'recoveries', 0, 'crashes', 0, 'strikes', 0)
    if is_suspect(run) then
      free_place(run)
    end
    run.recoveries, run.crashes, run.strikes = 0, 0, 0
  end
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
