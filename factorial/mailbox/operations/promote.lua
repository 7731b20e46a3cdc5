#!lua flags=allow-oom
-- Queue an agent's runs that are due, and see to it that a worker hears of what is ready.
--
-- ARGV     agent
-- Answers  how many became ready
-- include: lib/args.lua
-- include: lib/park.lua
local agent = take()
local promoted = promote_due(agent, now_ms())
wake_if_ready(agent)
return promoted
