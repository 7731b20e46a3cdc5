#!lua flags=allow-oom
-- Queue an agent's runs that are due, and make sure that a worker wakes up if anything is ready.
--
-- ARGV     agent
-- Answers  how many were due
-- include: lib/args.lua
-- include: lib/park.lua
local agent = take()
local promoted = promote_due(agent, now_ms())
wake_if_ready(agent)
return promoted
