#!lua flags=allow-oom
-- End a run as cancelled: at once if nobody holds it, else by telling the process that does.
--
-- ARGV     id
-- Answers  {'OK', 'cancelled' | 'processing', 1 if runs that it spawned are to be cancelled next}
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
local status = run.status == 'cancelled' and 'cancelled' or cancel(run, now_ms())
return {'OK', status, redis.call('EXISTS', doomed_key())}
