#!lua flags=allow-oom
-- End a run as cancelled: at once if nobody holds it, else by telling the process that does.
--
-- ARGV     id
-- Answers  {'OK', 'cancelled' | 'processing', 1 if runs that it spawned are to be cancelled next, 1 if it ended here}
--          | {'NOTFOUND'} | {'ENDED', status}
-- Events   run_cancelled, now or with the holder's next commit: accepted means that the run ends cancelled
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
