#!lua flags=allow-oom
-- Claim up to `count` ready runs for a worker of a living process.
--
-- ARGV     process, worker, agent, count, nonce (unique to this request), recovery limit, owner limit (0: none)
-- Answers  {'OK', ms until the next run is due or -1, {run, ...}} | {'NOLEASE'}: register the process first
--          run = {id, owner, epoch, seq, retries, pickups, cancel request, {conversation}, {context fields}, {journal},
--          {what it was parked for, with the results}, ms since 1970 of its first claim, ms since it was deferred or 0,
--          ms since it was enqueued}
-- Events   run_started with the first claim of a run; run_steering_applied; run_failed for a run with damaged keys, which
--          must not affect the runs that were popped with it
--
-- The same request again (its answer was lost) gets the same runs. A request that is older than the worker's latest one
-- gets none: it was delayed on a connection that the client has given up. The wake token is passed on if work remains.
-- Suspects are claimed first, and a process holds one of them at most, next to any number of other runs.
-- A run whose owner has `owner limit` held runs of this agent is throttled, until one of them is not held any more.
-- include: lib/args.lua
-- include: lib/ending.lua
local process, worker, agent, count, nonce, recovery_limit, owner_limit =
  take(), take(), take(), take_number(), take(), take(), take_number()

if redis.call('EXISTS', lease_key(process)) == 0 then
  return {'NOLEASE'}
end

local now = now_ms()
local claimed = {}

-- Queue entries that yield no claim (the run was cancelled in the queue, or its owner has enough): one call looks at so
-- many at most, so that no call takes long. The wake token brings the worker back for the rest.
local MOST_PASSED_OVER = 1000

local function described(run, journal, awaits)
  return {run.id, run.owner, run.epoch, run.seq, run.retries, run.pickups, run.cancel_requested,
    redis.call('LRANGE', conversation_key(run.id), 0, -1), redis.call('HGETALL', fields_key(run.id)), journal, awaits,
    tonumber(run.started_at), run.deferred_at == '' and 0 or math.max(1, now - tonumber(run.deferred_at)),
    math.max(0, now - (tonumber(run.created_at) or now))}
end

-- Whether the journal holds a step of a turn: the model's answer, or a tool call. What callbacks recorded before it
-- (`run_start`, `run_start/completion`, `step:<name>`) does not count.
local function turn_has_begun(journal)
  for i = 1, #journal, 2 do
    local step = string.gsub(journal[i], '^#%d+:', '')
    if step == 'completion' or string.find(step, '^tool:') or string.find(step, '^expected:') then
      return true
    end
  end
  return false
end

local function hold(run)
  run.holder, run.epoch, run.pickups = process, run.epoch + 1, run.pickups + 1
  run.started_at = run.started_at == '' and now or run.started_at
  write_run(run.id, 'status', 'processing', 'holder', process, 'epoch', run.epoch, 'nonce', nonce, 'message_number', 0,
    'pickups', run.pickups, 'started_at', run.started_at, 'recovery_limit', recovery_limit)
  redis.call('SADD', held_key(process), run.id)
  if run.deferred_at ~= '' then
    redis.call('HDEL', deferred_key(agent), run.id)
  end
  local running = add_to_count(running_key(agent), run.owner, 1)
  if owner_limit == 0 or running and running < owner_limit then
    unthrottle_next(run) -- the limit may have been raised
  end
  if run.pickups == 1 then
    publish_about(run, 'run_started', now, ',"metadata":{"process":' .. cjson.encode(process) .. '}')
  end
  -- A turn that has begun is finished without new steering: its model call has not seen it. Nor may a message come
  -- between a tool call and its result.
  local journal, awaits = {}, {}
  if run.pickups > 1 then -- before that, there is neither
    journal, awaits = redis.call('HGETALL', journal_key(run.id)), redis.call('HGETALL', awaits_key(run.id))
  end
  if not turn_has_begun(journal) and #awaits == 0 then
    read_mail(run, now)
  end
  return described(run, journal, awaits)
end

-- The run to claim for a queue entry. With a limit that is the oldest throttled run of the same owner: the entry counts
-- as the owner's turn. Nil if the owner has enough. Damaged keys limit no owner.
local function next_of_owner(run)
  if owner_limit == 0 then
    return run
  end
  local added = redis.pcall('ZADD', throttled_runs(run), tonumber(run.created_at) or now, run.id)
  if type(added) == 'table' then
    return run
  end
  local running = redis.pcall('HGET', running_key(agent), run.owner)
  if type(running) == 'table' or (tonumber(running) or 0) < owner_limit then
    return next_throttled(run)
  end
end

-- Claims the run, or ends it as failed if its keys are of a wrong type. An aborted script is not rolled back, so the
-- runs that were popped from the queue with this one would be lost.
local function claim(run)
  local whole, found = pcall(hold, run)
  if whole then
    claimed[#claimed + 1] = found
    return
  end
  local error_text = 'what is stored for task ' .. run.id .. ' cannot be read: ' .. tostring(found.err or found)
  pcall(function()
    clear_holder(run, process)
    refuse_mail(run, 'failed', now)
    publish_about(run, 'run_failed', now, ',"metadata":null,"error":' .. cjson.encode(error_text))
    finish(run, 'failed', now, error_text)
  end)
end

local function holds_suspect()
  return redis.call('HEXISTS', claims_key(process), 'suspect') == 1
end

local function claim_suspect()
  local id = redis.call('LPOP', suspects_key(agent))
  local run = id and load_run(id)
  if run and run.status == 'queued' then
    redis.call('HSET', claims_key(process), 'suspect', id)
    claim(run)
  end
end

-- Whether the wake token is still needed. A process that may not claim the waiting suspects passes the token on once:
-- the processes that wait for it are served in turn, so it reaches all of them before it comes back. Then it is
-- dropped, or it would circulate for ever. A new suspect, or a process that may claim one again, brings a new token.
local function somebody_may_claim_more()
  return redis.call('LLEN', ready_key(agent)) > 0 or redis.call('LLEN', suspects_key(agent)) > 0
    and (not holds_suspect() or redis.call('SADD', passed_key(agent), process) == 1)
end

local function number_of(a_nonce)
  return a_nonce and tonumber(string.match(a_nonce, '^(%d+)-')) or 0
end

local latest = redis.call('HGET', claims_key(process), worker)
if latest == nonce then
  for _, id in ipairs(redis.call('SMEMBERS', held_key(process))) do
    local run = load_run(id)
    if run and run.status == 'processing' and run.nonce == nonce then
      local journal, awaits = redis.call('HGETALL', journal_key(id)), redis.call('HGETALL', awaits_key(id))
      claimed[#claimed + 1] = described(run, journal, awaits)
    end
  end
elseif number_of(nonce) >= number_of(latest) then
  redis.call('HSET', claims_key(process), worker, nonce)
  promote_due(agent, now)
  if count > 0 and not holds_suspect() then
    claim_suspect()
  end
  local looked_at = 0
  while #claimed < count and looked_at < count + MOST_PASSED_OVER do
    local wanted = count - #claimed
    local ids = redis.call('LPOP', ready_key(agent), wanted) or {}
    looked_at = looked_at + #ids
    for _, id in ipairs(ids) do
      local run = load_run(id)
      if run and run.status == 'queued' then
        local next_run = next_of_owner(run)
        if next_run then
          claim(next_run)
        end
      elseif run then
        unthrottle_next(run) -- the run was unthrottled, and has ended since
      end
    end
    if #ids == 0 then
      break
    end
  end
end

if somebody_may_claim_more() then
  wake(agent)
end
local next_due = redis.call('ZRANGE', due_key(agent), 0, 0, 'WITHSCORES')[2]
return {'OK', next_due and math.max(0, tonumber(next_due) - now) or -1, claimed}
