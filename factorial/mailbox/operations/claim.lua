#!lua flags=allow-oom
-- Take up to `count` ready runs for a worker of a living process.
--
-- ARGV     process, worker, agent, count, nonce (unique to this request), recovery limit, owner limit (0: none)
-- Answers  {'OK', ms until the next run is due or -1, {run, ...}} | {'NOLEASE'}: register the process first
--          run = {id, owner, epoch, seq, retries, pickups, cancel, {conversation}, {context fields}, {journal},
--          {what it was parked for, with the results}, ms since 1970 when it was first taken up}
-- Events   run_started, when a run is taken up for the first time; run_steering_applied; run_failed, of a run whose keys
--          were damaged: it must not hold up those that were taken from the queue with it
--
-- The same request again (its answer was lost) gives the same runs; an older one than the worker's latest, which was
-- late on a connection that has been given up, gives none. A wake token is passed on if work remains.
-- Suspects come first, and a process holds one of them at the most, beside any number of other runs.
-- A run whose owner has `owner limit` runs of this agent held already waits apart, until one of them is let go.
-- include: lib/args.lua
-- include: lib/ending.lua
local process, worker, agent, count, nonce, recovery_limit, owner_limit =
  take(), take(), take(), take_number(), take(), take(), take_number()

if redis.call('EXISTS', lease_key(process)) == 0 then
  return {'NOLEASE'}
end

local now = now_ms()
local claimed = {}

-- Entries of runs that were cancelled while they were queued, and runs whose owner has enough: so many are passed over
-- in one call, so that no call takes long. The wake token brings the worker back for the rest.
local MOST_PASSED_OVER = 1000

local function contents(run, journal, awaited)
  return {run.id, run.owner, run.epoch, run.seq, run.retries, run.pickups, run.cancel_requested,
    redis.call('LRANGE', conversation_key(run.id), 0, -1), redis.call('HGETALL', fields_key(run.id)), journal, awaited,
    tonumber(run.started_at)}
end

-- Whether the model has answered in the turn that this journal is of, or a tool was called. What callbacks did before
-- that (`run_start`, `run_start/completion`, `step:<name>`) does not count.
local function is_begun(journal)
  for i = 1, #journal, 2 do
    local step = string.gsub(journal[i], '^#%d+:', '')
    if step == 'completion' or string.find(step, '^tool:') or string.find(step, '^expected:') then
      return true
    end
  end
  return false
end

local function take_up(run)
  run.holder, run.epoch, run.pickups = process, run.epoch + 1, run.pickups + 1
  run.started_at = run.started_at == '' and now or run.started_at
  write_run(run.id, 'status', 'processing', 'holder', process, 'epoch', run.epoch, 'nonce', nonce, 'message_number', 0,
    'pickups', run.pickups, 'started_at', run.started_at, 'recovery_limit', recovery_limit)
  redis.call('SADD', held_key(process), run.id)
  local running = add_to_count(running_key(agent), run.owner, 1)
  if owner_limit == 0 or running and running < owner_limit then
    let_next_in(run) -- the limit may have been raised
  end
  if run.pickups == 1 then
    tell(run, 'run_started', now, ',"metadata":{"process":' .. cjson.encode(process) .. '}')
  end
  -- A turn that was begun is finished as it was begun: its model has not seen what was posted since. Nor may anything
  -- come between a tool call and its result.
  local journal, awaited = {}, {}
  if run.pickups > 1 then -- before that, there is neither
    journal, awaited = redis.call('HGETALL', journal_key(run.id)), redis.call('HGETALL', awaits_key(run.id))
  end
  if not is_begun(journal) and #awaited == 0 then
    read_mail(run, now)
  end
  return contents(run, journal, awaited)
end

-- Which run is taken up for one that is ready: with a limit, the oldest of its owner's that wait, since a place in the
-- queue is their owner's; nil if the owner has enough. What is damaged limits nobody.
local function whose_turn(run)
  if owner_limit == 0 then
    return run
  end
  local waits = redis.pcall('ZADD', throttled_runs(run), tonumber(run.created_at) or now, run.id)
  if type(waits) == 'table' then
    return run
  end
  local running = redis.pcall('HGET', running_key(agent), run.owner)
  if type(running) == 'table' or (tonumber(running) or 0) < owner_limit then
    return next_throttled(run)
  end
end

-- Take it up, or end it as failed if what is stored of it is of a wrong type: a script that breaks off is not rolled
-- back, and the runs that were taken from the queue with this one would be lost.
local function claim(run)
  local whole, found = pcall(take_up, run)
  if whole then
    claimed[#claimed + 1] = found
    return
  end
  local error_text = 'what is stored for task ' .. run.id .. ' cannot be read: ' .. tostring(found.err or found)
  pcall(function()
    let_go(run, process)
    refuse_mail(run, 'failed', now)
    tell(run, 'run_failed', now, ',"metadata":null,"error":' .. cjson.encode(error_text))
    finish(run, 'failed', now, error_text)
  end)
end

local function holds_suspect()
  return redis.call('HEXISTS', claims_key(process), 'suspect') == 1
end

local function take_suspect()
  local id = redis.call('LPOP', suspects_key(agent))
  local run = id and load_run(id)
  if run and run.status == 'queued' then
    redis.call('HSET', claims_key(process), 'suspect', id)
    claim(run)
  end
end

-- A process that may not take the suspects that wait passes the token on once: those who wait for it are served in
-- turn, so it comes to all of them before it comes back. Then it is dropped, or it would go round for ever; whoever
-- gets one of these suspects ready, or frees a place for one, puts a new one there.
local function somebody_may_take_more()
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
      claimed[#claimed + 1] = contents(run, redis.call('HGETALL', journal_key(id)), redis.call('HGETALL', awaits_key(id)))
    end
  end
elseif number_of(nonce) >= number_of(latest) then
  redis.call('HSET', claims_key(process), worker, nonce)
  promote_due(agent, now)
  if count > 0 and not holds_suspect() then
    take_suspect()
  end
  local looked_at = 0
  while #claimed < count and looked_at < count + MOST_PASSED_OVER do
    local wanted = count - #claimed
    local ids = redis.call('LPOP', ready_key(agent), wanted) or {}
    looked_at = looked_at + #ids
    for _, id in ipairs(ids) do
      local run = load_run(id)
      if run and run.status == 'queued' then
        local next_run = whose_turn(run)
        if next_run then
          claim(next_run)
        end
      elseif run then
        let_next_in(run) -- it was let in, and has ended since
      end
    end
    if #ids == 0 then
      break
    end
  end
end

if somebody_may_take_more() then
  wake(agent)
end
local next_due = redis.call('ZRANGE', due_key(agent), 0, 0, 'WITHSCORES')[2]
return {'OK', next_due and math.max(0, tonumber(next_due) - now) or -1, claimed}
