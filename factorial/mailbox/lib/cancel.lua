-- include: lib/ending.lua
-- Cancels a run: ends it at once if no process holds it, else flags it and signals its holder. Returns its status.
local function cancel(run, now)
  if run.status == 'processing' then
    write_run(run.id, 'cancel_requested', '1')
    redis.call('RPUSH', signals_key(run.holder), 'cancel ' .. run.id)
    redis.call('PEXPIRE', signals_key(run.holder), 60000)
    return 'processing'
  end
  redis.call('ZREM', due_key(run.agent), run.id)
  redis.call('SREM', parked_key(run.agent), run.id)
  if redis.pcall('ZREM', throttled_runs(run), run.id) ~= 1 then
    unthrottle_next(run) -- the run may have been unthrottled itself, and will not make room for the next one
  end
  forget_idle_owner(run, tonumber(redis.pcall('HGET', running_key(run.agent), run.owner)) or 1)
  if is_suspect(run) then
    redis.call('LREM', suspects_key(run.agent), 0, run.id)
  end
  write_run(run.id, 'epoch', run.epoch + 1)
  finish(run, 'cancelled', now, '')
  return 'cancelled'
end
