#!lua flags=allow-oom
-- Cancel runs whose parent was cancelled, or no longer waits for them; and with each of them those that it spawned.
--
-- ARGV     most runs to cancel
-- Answers  1 if more are to be cancelled
-- Events   run_cancelled, now or with the holder's next commit
-- include: lib/args.lua
-- include: lib/cancel.lua
local now = now_ms()
for _, id in ipairs(redis.call('LPOP', doomed_key(), take_number()) or {}) do
  local run = load_run(id)
  if run and not is_final(run.status) then
    pcall(cancel, run, now) -- damaged keys of one harm no other
  end
end
return redis.call('EXISTS', doomed_key())
