#!lua flags=allow-oom
-- Cancel a batch: doom its runs, or a part of them. Those that have ended stay as they are.
--
-- ARGV     batch, runs (list)
-- Answers  {'OK'} | {'NOTFOUND'}
-- Events   batch_cancelled with the end of the last run, or now if no run is active
-- include: lib/args.lua
-- include: lib/batch.lua
local batch, ids = load_batch(take()), take_list()
if batch.total == 0 then
  return {'NOTFOUND'}
elseif batch.ended < batch.total then
  append_all(doomed_key(), ids)
  if redis.call('HSETNX', batch_key(batch.id), 'cancel_requested', '1') == 1 and batch.active <= 0 then
    publish_about_batch(batch, 'batch_cancelled', 'cancelled', now_ms())
  end
end
return {'OK'}
