#!lua flags=allow-oom
-- Record finished steps of a turn, and publish its events so far.
--
-- ARGV     id, epoch, nonce, seq (commits so far), number of this message within the epoch,
--          journal entries (list of name, value), events (list)
-- Answers  {'OK', '1' if the run is to be cancelled} | {'SUPERSEDED'}: another process holds the run now
-- Events   those given, once
-- include: lib/args.lua
-- include: lib/places.lua
local id, epoch, nonce, seq, message_number = take(), take_number(), take(), take_number(), take_number()
local entries = take_list()
local events = take_list()

local run = load_run(id)
if not is_held_by(run, epoch, nonce) or seq > run.seq then -- seq > run.seq: the server has lost a commit
  return {'SUPERSEDED'}
end
if seq < run.seq then
  return {'OK', run.cancel_requested}
end
local new_entries = 0 -- an entry that exists is not a step of this attempt
for i = 1, #entries, 2 do
  new_entries = new_entries + redis.call('HSETNX', journal_key(id), entries[i], entries[i + 1])
end
if new_entries > 0 then
  clear_blame(run)
  clear_deferral(run)
end
if message_number > run.message_number then
  for _, event in ipairs(events) do
    publish(run.owner, event)
  end
  write_run(id, 'message_number', message_number)
end
return {'OK', run.cancel_requested}
