-- include: lib/run.lua
-- How far a batch is.
--
-- Its hash has `total`, and of its runs, how many have `ended`, how many are `active`, and how many ended in each way. If
-- its agent has `max_turns`, progress counts turns: `turns` are those that its runs have taken, and a run that has ended
-- counts as if it had taken all of them. `owner`, `parent` and `parent_agent` are what its events say of it; a batch
-- without `parent` was enqueued by a client. `cancel_requested` is set when the batch is cancelled as such. The ids of its runs
-- follow from `seed`.
local BATCH_FIELDS = {'owner', 'parent', 'parent_agent', 'total', 'ended', 'active', 'max_turns', 'turns',
  'cancel_requested'}

local function load_batch(id)
  local values = redis.call('HMGET', batch_key(id), unpack(BATCH_FIELDS))
  local batch = {id = id}
  for i, field in ipairs(BATCH_FIELDS) do
    batch[field] = values[i] or nil
  end
  for _, field in ipairs({'total', 'ended', 'active', 'max_turns', 'turns'}) do
    batch[field] = tonumber(batch[field]) or 0
  end
  return batch
end

local function percent_of(batch)
  local done, whole = batch.ended, batch.total
  if batch.max_turns > 0 then
    done, whole = batch.turns, batch.total * batch.max_turns
  end
  return whole > 0 and math.floor(100 * done / whole) or 100
end

-- Publishes an event about the batch, if it is known whose it is.
local function publish_about_batch(batch, event_type, state, now)
  if not batch.owner or not batch.parent_agent then
    return
  end
  local about = {id = batch.parent, owner = batch.owner, agent = batch.parent_agent}
  publish_about(about, event_type, now, ',"metadata":null,"batch_id":"' .. batch.id .. '","progress":'
    .. percent_of(batch) .. ',"completed_tasks":' .. batch.ended .. ',"total_tasks":' .. batch.total .. ',"status":"'
    .. state .. '"')
end

-- The run has taken so many turns. Each turn counts once, however often it is told.
local function take_turns(run, batch, turns)
  if batch.max_turns == 0 then
    return
  end
  local counted = tonumber(redis.call('HGET', run_key(run.id), 'counted_turns')) or 0
  local taken = math.min(turns, batch.max_turns) - counted
  if taken > 0 then
    write_run(run.id, 'counted_turns', counted + taken)
    batch.turns = redis.call('HINCRBY', batch_key(batch.id), 'turns', taken)
  end
end

-- A turn of the run was committed, and the run goes on.
local function count_turn(run, now)
  local batch = load_batch(run.batch)
  local before = percent_of(batch)
  take_turns(run, batch, tonumber(redis.call('HGET', fields_key(run.id), 'turn')) or 0)
  if percent_of(batch) > before then
    publish_about_batch(batch, 'batch_progress', 'active', now)
  end
end

-- The run has ended. Each whole percent is published once, so a batch has about 100 events at most. The batch ends with
-- its last run. If it was cancelled, or its parent was, only some of its runs may have been stored. If the parent has
-- ended and was removed, the batch still has what its events say of it.
local function count_end(run, parent, status, now)
  local batch = load_batch(run.batch)
  local before, key = percent_of(batch), batch_key(run.batch)
  take_turns(run, batch, batch.max_turns)
  batch.ended, batch.active = redis.call('HINCRBY', key, 'ended', 1), redis.call('HINCRBY', key, 'active', -1)
  if batch.total == 0 then
    batch.total = batch.ended
  end
  redis.call('HINCRBY', key, status, 1)
  if run.parent ~= '' then
    batch.parent = run.parent
    if parent then
      batch.owner, batch.parent_agent = parent.owner, parent.agent
    end
  end
  local cancelled = batch.cancel_requested ~= nil or run.parent ~= '' and (
    parent and parent.status == 'cancelled' or not parent and batch.ended < batch.total)
  local over = batch.ended == batch.total or cancelled and batch.active <= 0
  local state = not over and 'active' or cancelled and 'cancelled' or 'completed'
  if over or percent_of(batch) > before then
    publish_about_batch(batch, 'batch_progress', state, now)
  end
  if over then
    publish_about_batch(batch, 'batch_' .. state, state, now)
  end
  if batch.active <= 0 then
    redis.call('PEXPIRE', key, EVENTS_TTL_MS)
  end
end
