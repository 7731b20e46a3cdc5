#!lua
-- Put steering messages into a run's mailbox. The run reads them before its next model call.
--
-- ARGV     id, message id (the same on every try), most messages in the mailbox, messages (list)
-- Answers  {'OK', status} | {'DUP', status} | {'NOTFOUND'} | {'ENDED', status} | {'FULL', messages in the mailbox}
-- include: lib/args.lua
-- include: lib/run.lua
local id, message_id, most = take(), take(), take_number()
local messages = take_list()

local run = load_run(id)
if not run then
  return {'NOTFOUND'}
end
if is_final(run.status) then
  return {'ENDED', run.status}
end
if redis.call('SISMEMBER', seen_key(id), message_id) == 1 then
  return {'DUP', run.status}
end
local unread = redis.call('LLEN', mail_key(id))
if unread + #messages > most then
  return {'FULL', unread}
end
redis.call('SADD', seen_key(id), message_id)
append_all(mail_key(id), messages)
return {'OK', run.status}
