#!lua flags=allow-oom
-- Cancel a run: end it at once if no process holds it, else flag it and signal its holder.
--
-- ARGV     id
-- Answers  {'OK', 'cancelled' | 'processing', 1 if there are spawned runs to cancel next, 1 if the run ended here}
--          | {'NOTFOUND'} | {'ENDED', status}
-- Events   run_cancelled, now or with the holder's next commit: an accepted cancel ends the run as cancelled
-- include: lib/args.lua
-- include: lib/cancel.lua
local id = take()
local run = load_run(id)
if not run then
  return {'NOTFOUND'}
end
if is_final(run.status) and run.status ~= 'cancelled' then
  return {'ENDED', run.status}
end
local before = run.status
local status = before == 'cancelled' and before or cancel(run, now_ms())
return {'OK', status, redis.call('EXISTS', doomed_key()), status == 'cancelled' and status ~= before and 1 or 0}
