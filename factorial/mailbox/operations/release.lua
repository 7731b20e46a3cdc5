#!lua flags=allow-oom
-- A living process releases runs that it holds by the server's account, and does not execute: the server has gone back
-- to an earlier state (a failover, a restart with old data), or a command was lost.
--
-- ARGV     process, runs (list)
-- Answers  {the runs that go on, ...}
-- Events   task_reclaimed | run_cancelled
-- include: lib/args.lua
-- include: lib/reclaim.lua
local process, ids = take(), take_list()
local now = now_ms()
local go_on = {}
for _, id in ipairs(ids) do
  if reclaim_from(process, id, 'left', false, now) == 'go_on' then
    go_on[#go_on + 1] = id
  end
end
return go_on
