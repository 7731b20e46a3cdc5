#!lua flags=allow-oom
-- End a turn: write what it leaves behind, and carry out its outcome.
--
-- ARGV     id, process, epoch, nonce, seq (the commit before this one), turn done ('1' or '0'),
--          rewrite ('1': the conversation was edited, what follows is all of it),
--          messages (list of 'm' .. JSON, or 'j' .. name of the journal entry that holds it),
--          context fields (list of name, value), journal entries (list of name, value; kept if the turn is not done),
--          events (list), number of a record message that was not answered or 0, how many of the events it carried (the
--          first ones: they may have been published),
--          action, delay in ms (backoff, defer), error text (fail, backoff, defer),
--          final fields (list of name, value) and final events (list): only if the action is carried out,
--          plan, and what the run awaits (list of key, ms until its deadline or 0): only for `park`
-- action   continue | complete | conclude (complete, even over unread mail) | park | backoff |
--          defer | release | fail | cancel
-- Answers  {'OK', action carried out, mail that has entered the conversation (list), {what the run awaited, with the
--          results}} | {'SUPERSEDED'} | {'MISSING'}: a named journal entry does not exist, nothing was changed
--          A `complete` with unread mail is carried out as `continue`, because accepted steering is never dropped. With
--          `conclude`, in the last allowed turn, unread mail is answered with run_steering_failed.
--          A `park` whose results have all arrived is carried out as `resume`.
--          Any action on a run that is to be cancelled is carried out as `cancel`.
-- Events   those given, once; run_steering_applied, run_steering_failed, run_cancelled, batch_progress
-- include: lib/args.lua
-- include: lib/ending.lua
local id, process, epoch, nonce, seq = take(), take(), take_number(), take(), take_number()
local turn_done, rewrite = take() == '1', take() == '1'
local messages = take_list()
local fields = take_list()
local entries = take_list()
local events = take_list()
local unanswered, unanswered_events = take_number(), take_number()
local action, delay, error_text = take(), take_number(), take()
local final_fields = take_list()
local final_events = take_list()
local plan, awaited_keys = take(), take_list()

local run = load_run(id)
local token = epoch .. ':' .. nonce .. ':' .. seq
if run and string.sub(run.last_commit, 1, #token + 1) == token .. ':' then
  -- The same commit again: its answer was lost. If it led to another turn, and another process holds the run by now,
  -- that process reads what has arrived since.
  local carried_out, mail = string.match(run.last_commit, '(%a+):(%d+)$')
  if (carried_out == 'continue' or carried_out == 'resume') and not is_held_by(run, epoch, nonce) then
    return {'SUPERSEDED'}
  end
  return {'OK', carried_out, mail == '0' and {} or redis.call('LRANGE', conversation_key(id), -tonumber(mail), -1),
    carried_out == 'resume' and redis.call('HGETALL', awaits_key(id)) or {}}
end
if not is_held_by(run, epoch, nonce) or run.seq ~= seq then
  return {'SUPERSEDED'}
end
for i, message in ipairs(messages) do
  local kind, body = string.sub(message, 1, 1), string.sub(message, 2)
  if kind == 'j' then
    body = redis.call('HGET', journal_key(id), body)
    if not body then
      return {'MISSING'} -- the server has lost the entry
    end
  end
  messages[i] = body
end

if run.cancel_requested == '1' then
  action = 'cancel'
elseif action == 'conclude' then
  action = 'complete'
elseif action == 'complete' and redis.call('LLEN', mail_key(id)) > 0 then
  action = 'continue'
end

-- Returns the hash of what the run awaits, with the results that have arrived, how much of it is open, and the first
-- deadline.
local function read_awaits(now)
  local found, open, first_deadline = {'plan', plan}, 0, nil
  for i = 1, #awaited_keys, 2 do
    local key, patience = awaited_keys[i], tonumber(awaited_keys[i + 1])
    local child = string.match(key, '^child:(.*)$')
    local result
    if child then
      local status, error_text, parent = unpack(redis.call('HMGET', run_key(child), 'status', 'error', 'parent'))
      if not status or parent ~= id then
        result = '{"status":"unknown"}'
      elseif is_final(status) then
        result = child_result(child, status, error_text)
      end
    else
      result = redis.call('HGET', journal_key(id), 'delivered:' .. key)
    end
    if result then
      extend(found, {key, '!' .. result})
    else
      local deadline = patience > 0 and now + patience or 0
      extend(found, {key, '?' .. deadline})
      open = open + 1
      first_deadline = deadline > 0 and math.min(deadline, first_deadline or deadline) or first_deadline
    end
  end
  extend(found, {'open', open})
  return found, open, first_deadline
end

local now = now_ms()
local awaits, open, first_deadline
if action == 'park' then
  awaits, open, first_deadline = read_awaits(now)
  if open == 0 then
    action = 'resume'
  end
end
if rewrite then
  redis.call('DEL', conversation_key(id))
end
append_all(conversation_key(id), messages)
if action ~= 'continue' and action ~= 'resume' and action ~= 'cancel' then
  extend(fields, final_fields)
  extend(events, final_events)
end
set_all(fields_key(id), fields)
if turn_done then
  redis.call('DEL', journal_key(id), awaits_key(id))
else
  set_all(journal_key(id), entries)
end
if action == 'complete' or action == 'fail' then
  refuse_mail(run, action == 'complete' and 'completed' or 'failed', now)
end
local published = unanswered > 0 and run.message_number >= unanswered and unanswered_events or 0
for i = published + 1, #events do
  publish(run.owner, events[i])
end
local mail = action == 'continue' and read_mail(run, now) or {}
write_run(id, 'seq', seq + 1, 'last_commit', token .. ':' .. action .. ':' .. #mail)
if turn_done and run.retries > 0 then
  write_run(id, 'retries', 0)
end
if turn_done or #entries > 0 then
  clear_blame(run)
  clear_deferral(run)
end

if awaits then
  set_all(awaits_key(id), awaits)
end
if turn_done and run.batch ~= '' and action ~= 'complete' and action ~= 'fail' and action ~= 'cancel' then
  pcall(count_turn, run, now) -- a damaged batch must not stop the run
end

if action == 'continue' then
  return {'OK', action, mail, {}}
elseif action == 'resume' then
  return {'OK', action, {}, redis.call('HGETALL', awaits_key(id))}
end

clear_holder(run, process)
if action == 'complete' then
  finish(run, 'completed', now, '')
elseif action == 'fail' then
  finish(run, 'failed', now, error_text)
elseif action == 'cancel' then
  finish(run, 'cancelled', now, '')
elseif action == 'backoff' then
  write_run(id, 'status', 'backoff', 'holder', '', 'retries', run.retries + 1, 'error', error_text)
  redis.call('ZADD', due_key(run.agent), now + delay, id)
  tally(run.agent, 'retried', now)
elseif action == 'defer' then
  local since = run.deferred_at == '' and now or run.deferred_at
  write_run(id, 'status', 'backoff', 'holder', '', 'error', error_text, 'deferred_at', since)
  redis.call('HSET', deferred_key(run.agent), id, error_text)
  redis.call('ZADD', due_key(run.agent), now + delay, id)
elseif action == 'park' then
  local for_tools = string.sub(awaited_keys[1], 1, 5) == 'tool:'
  write_run(id, 'status', for_tools and 'pending_tool_results' or 'pending_child_tasks', 'holder', '')
  redis.call('SADD', parked_key(run.agent), id)
  if first_deadline then
    redis.call('ZADD', due_key(run.agent), first_deadline, id)
  end
else
  write_run(id, 'status', 'queued', 'holder', '')
  make_ready(run, true)
end
return {'OK', action, {}, {}}
