#!lua flags=no-writes
-- Count the runs in each place, for the named agents and for those that a process has registered for.
--
-- ARGV     agents (list)
-- Answers  {agent, ready runs, throttled runs, suspects, runs in backoff, parked runs, held runs, ...}
-- include: lib/args.lua
local agents, held = take_list(), {}
for _, agent in ipairs(agents) do
  held[agent] = 0
end
for _, process in ipairs(redis.call('ZRANGE', processes_key(), 0, -1)) do
  local agent = redis.call('HGET', claims_key(process), 'agent')
  if agent then
    if not held[agent] then
      held[agent] = 0
      agents[#agents + 1] = agent
    end
    held[agent] = held[agent] + redis.call('SCARD', held_key(process))
  end
end

-- An owner without a count has neither held nor throttled runs.
local function throttled(agent)
  local count = 0
  for _, owner in ipairs(redis.call('HKEYS', running_key(agent))) do
    count = count + redis.call('ZCARD', throttled_key(agent .. ':' .. owner))
  end
  return count
end

local answer = {}
for _, agent in ipairs(agents) do
  local due, parked = due_key(agent), parked_key(agent)
  local backoff = redis.call('ZCARD', due) - redis.call('ZINTERCARD', 2, due, parked) -- parked runs may have deadlines
  extend(answer, {agent, redis.call('LLEN', ready_key(agent)), throttled(agent),
    redis.call('LLEN', suspects_key(agent)), backoff, redis.call('SCARD', parked), held[agent]})
end
return answer
