-- Queue an agent's runs that are due, and see to it that a worker hears of what is ready.
--
-- ARGV     agent
-- Answers  how many became ready
-- include: lib/args.lua
-- include: lib/run.lua
return promote_due(take(), now_ms())
