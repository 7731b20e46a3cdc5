#!lua flags=allow-oom
-- Keep what finished within a turn, and publish what happened so far.
--
-- ARGV     id, epoch, nonce, seq (commits so far), number of this message within the epoch,
--          journal entries (list of name, value), events (list)
-- Answers  {'OK', '1' if the run is to be cancelled} | {'SUPERSEDED'}: somebody else holds the run now
-- Events   those given, once
-- include: lib/args.lua
-- include: lib/run.lua
local id, epoch, nonce, seq, message_number = take(), take_number(), take(), take_number(), take_number()
local entries = take_list()
local events = take_list()

local run = load_run(id)
if not is_held_by(run, epoch, nonce) or seq > run.seq then -- a commit that the server does not know any more
  return {'SUPERSEDED'}
end
if seq < run.seq then
  return {'OK', run.cancel_requested}
end
local news = 0 -- what was there already is no step of this try
for i = 1, #entries, 2 do
  news = news + redis.call('HSETNX', journal_key(id), entries[i], entries[i + 1])
end
if news > 0 then
  acquit(run)
end
if message_number > run.message_number then
  for _, event in ipairs(events) do
    publish(run.owner, event)
  end
  write_run(id, 'message_number', message_number)
end
return {'OK', run.cancel_requested}
