#!lua flags=allow-oom
-- Store the outcome of an order.
--
-- ARGV     order id, answer (JSON), ms for which it is kept
-- Answers  {'OK'} | {'DUP'}: it was answered before, and the first answer stands
-- include: lib/args.lua
local id, answer, ttl = take(), take(), take_number()
if redis.call('EXISTS', answer_key(id)) == 1 then
  return {'DUP'}
end
redis.call('RPUSH', answer_key(id), answer)
redis.call('PEXPIRE', answer_key(id), ttl)
return {'OK'}
