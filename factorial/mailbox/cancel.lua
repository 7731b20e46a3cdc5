#!lua flags=allow-oom
-- End a run as cancelled: at once if nobody holds it, else by telling the process that does.
--
-- ARGV     id
-- Answers  {'OK', 'cancelled' | 'processing'} | {'NOTFOUND'} | {'ENDED', status}
-- Events   run_cancelled, now or with the holder's next commit: accepted means that the run ends cancelled
-- include: lib/args.lua
-- include: lib/run.lua
local id = take()
local run = load_run(id)
if not run then
  return {'NOTFOUND'}
end
if run.status == 'cancelled' then
  return {'OK', 'cancelled'}
end
if is_final(run.status) then
  return {'ENDED', run.status}
end
if run.status == 'processing' then
  redis.call('HSET', run_key(id), 'cancel', '1')
  redis.call('RPUSH', signals_key(run.holder), 'cancel ' .. id)
  redis.call('PEXPIRE', signals_key(run.holder), 60000)
  return {'OK', 'processing'}
end
redis.call('ZREM', due_key(run.agent), id)
if is_suspect(run) then
  redis.call('LREM', suspects_key(run.agent), 0, id)
end
redis.call('HSET', run_key(id), 'epoch', run.epoch + 1)
finish(run, 'cancelled', now_ms(), '')
return {'OK', 'cancelled'}
