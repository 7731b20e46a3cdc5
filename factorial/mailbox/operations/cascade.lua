#!lua flags=allow-oom
-- Cancel runs whose parent was cancelled or no longer awaits them, and doom the runs that they spawned.
--
-- ARGV     most runs to cancel
-- Answers  1 if there are more to cancel
-- Events   run_cancelled, now or with the holder's next commit
-- include: lib/args.lua
-- include: lib/cancel.lua
local now = now_ms()
for _, id in ipairs(redis.call('LPOP', doomed_key(), take_number()) or {}) do
  local run = load_run(id)
  if run and not is_final(run.status) then
    pcall(cancel, run, now) -- a run with damaged keys must not affect the others
  end
end
return redis.call('EXISTS', doomed_key())
