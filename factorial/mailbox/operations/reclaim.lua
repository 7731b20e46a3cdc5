#!lua flags=allow-oom
-- Take back what dead processes held.
--
-- ARGV     most runs to take back, process that is known to be dead or '', cause (left | crashed | killed)
-- Answers  {{the runs that go on}, {the runs that are given up}, 1 if there may be more}
-- Events   task_reclaimed | run_cancelled | run_failed (crash_loop)
--
-- A lease that is missing for the first time is only noted: after an outage of the server every lease is
-- gone, and the living register again within a heartbeat. A process that its supervisor saw die is not waited for.
-- include: lib/args.lua
-- include: lib/recover.lua
local most, dead, cause = take_number(), take(), take()
local now = now_ms()
local taken, found = 0, {go_on = {}, given_up = {}}

local function bury(process)
  local held = redis.call('SCARD', held_key(process))
  local alone = held == 1 and redis.call('HEXISTS', claims_key(process), 'in_parts') == 0
  if held > most - taken then
    redis.call('HSET', claims_key(process), 'in_parts', 1) -- the last one of them was not alone
  end
  for _, id in ipairs(redis.call('SRANDMEMBER', held_key(process), most - taken)) do
    local outcome = take_from(process, id, cause, alone, now)
    if outcome then
      taken = taken + 1
    end
    if found[outcome] then
      table.insert(found[outcome], id)
    end
  end
  if redis.call('SCARD', held_key(process)) == 0 then
    local agent = redis.call('HGET', claims_key(process), 'agent')
    if agent then
      wake_if_ready(agent) -- it may have died with the wake token in hand
    end
    redis.call('ZREM', processes_key(), process)
    redis.call('DEL', signals_key(process), claims_key(process))
  end
end

if dead ~= '' then
  redis.call('DEL', lease_key(dead))
  bury(dead)
else
  for _, process in ipairs(redis.call('ZRANGE', processes_key(), 0, -1)) do
    if taken >= most then
      break
    end
    if redis.call('EXISTS', lease_key(process)) == 0 then
      local missing_since = tonumber(redis.call('ZSCORE', processes_key(), process))
      if missing_since == 0 then
        redis.call('ZADD', processes_key(), now, process)
      elseif now - missing_since >= (tonumber(redis.call('HGET', claims_key(process), 'patience')) or 0) then
        bury(process)
      end
    end
  end
end
return {found.go_on, found.given_up, taken >= most and 1 or 0}
