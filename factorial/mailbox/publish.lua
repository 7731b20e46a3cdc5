#!lua
-- Publish an event that belongs to no change of a run.
--
-- ARGV     owner, event (JSON)
-- Answers  the event's id
-- Events   the one given
-- include: lib/args.lua
-- include: lib/events.lua
local owner, event = take(), take()
return publish(owner, event)
