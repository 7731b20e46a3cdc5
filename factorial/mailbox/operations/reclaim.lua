#!lua flags=allow-oom
-- Reclaim what dead processes held.
--
-- ARGV     most runs to reclaim, process that is known to be dead or '', cause (left | crashed | killed)
-- Answers  {{the runs that go on}, {the runs that are given up}, 1 if there may be more}
-- Events   task_reclaimed | run_cancelled | run_failed (crash_loop)
--
-- When a lease is first found missing, that is only noted: after an outage of the server every lease is missing, and
-- the living processes register again within a heartbeat. For a process that its supervisor saw die there is no such
-- delay.
-- include: lib/args.lua
-- include: lib/reclaim.lua
local most, dead, cause = take_number(), take(), take()
local now = now_ms()
local reclaimed, found = 0, {go_on = {}, given_up = {}}

local function reclaim_process(process)
  local held = redis.call('SCARD', held_key(process))
  local alone = held == 1 and redis.call('HEXISTS', claims_key(process), 'in_parts') == 0
  if held > most - reclaimed then
    redis.call('HSET', claims_key(process), 'in_parts', 1) -- the last of its runs was not alone
  end
  for _, id in ipairs(redis.call('SRANDMEMBER', held_key(process), most - reclaimed)) do
    local outcome = reclaim_from(process, id, cause, alone, now)
    if outcome then
      reclaimed = reclaimed + 1
    end
    if found[outcome] then
      table.insert(found[outcome], id)
    end
  end
  if redis.call('SCARD', held_key(process)) == 0 then
    local agent = redis.call('HGET', claims_key(process), 'agent')
    if agent then
      wake_if_ready(agent) -- it may have died after it took the wake token
    end
    redis.call('ZREM', processes_key(), process)
    redis.call('DEL', signals_key(process), claims_key(process))
  end
end

if dead ~= '' then
  redis.call('DEL', lease_key(dead))
  reclaim_process(dead)
else
  for _, process in ipairs(redis.call('ZRANGE', processes_key(), 0, -1)) do
    if reclaimed >= most then
      break
    end
    if redis.call('EXISTS', lease_key(process)) == 0 then
      local missing_since = tonumber(redis.call('ZSCORE', processes_key(), process))
      if missing_since == 0 then
        redis.call('ZADD', processes_key(), now, process)
      elseif now - missing_since >= (tonumber(redis.call('HGET', claims_key(process), 'patience')) or 0) then
        reclaim_process(process)
      end
    end
  end
end
return {found.go_on, found.given_up, reclaimed >= most and 1 or 0}
