#!lua
-- Publish an event that belongs to no change of a run.
--
-- ARGV     owner, message id (the same on every try), event (JSON)
-- Answers  {'OK'} | {'DUP'}: it was published before
-- Events   the one given
-- include: lib/args.lua
-- include: lib/events.lua
local owner, message_id, event = take(), take(), take()
if not redis.call('SET', published_key(message_id), '1', 'NX', 'PX', 600000) then
  return {'DUP'}
end
publish(owner, event)
return {'OK'}
