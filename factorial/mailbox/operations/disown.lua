#!lua flags=allow-oom
-- A living process gives back runs that it is said to hold, and does not execute: the server has gone back to an earlier
-- state (a failover, a restart with old data), or what was done with them was lost on the way.
--
-- ARGV     process, runs (list)
-- Answers  {the runs that go on, ...}
-- Events   task_reclaimed | run_cancelled
-- include: lib/args.lua
-- include: lib/recover.lua
local process, ids = take(), take_list()
local now = now_ms()
local go_on = {}
for _, id in ipairs(ids) do
  if take_from(process, id, 'left', false, now) == 'go_on' then
    go_on[#go_on + 1] = id
  end
end
return go_on
