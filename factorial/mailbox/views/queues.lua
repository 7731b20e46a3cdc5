#!lua flags=no-writes
-- Count the runs in each place, for the named agents and for those that a process has registered for.
--
-- ARGV     agents (list)
-- Answers  {agent, {place, runs, place, runs, ...}, ...}
--          A parked run with a deadline is counted as parked, not as due.
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
  local counts = {'throttled', throttled(agent), 'held', held[agent]}
  for _, place in ipairs(PLACES_OF_AGENT) do
    local kind, command = unpack(place)
    local count = redis.call(command, KEYS[1] .. kind .. ':' .. agent)
    if kind == 'due' then
      count = count - redis.call('ZINTERCARD', 2, due_key(agent), parked_key(agent))
    end
    extend(counts, {kind, count})
  end
  extend(answer, {agent, counts})
end
return answer
