#!lua flags=no-writes
-- One consistent view of a run.
--
-- ARGV     id
-- Answers  {{hash fields}, {conversation}, {context fields}, {keys of what it awaits and has not arrived}}: empty lists
--          if there is no such run
-- include: lib/args.lua
local id = take()
local open = {}
local awaits = redis.call('HGETALL', awaits_key(id))
for i = 1, #awaits, 2 do
  if string.sub(awaits[i + 1], 1, 1) == '?' then
    open[#open + 1] = awaits[i]
  end
end
return {redis.call('HGETALL', run_key(id)), redis.call('LRANGE', conversation_key(id), 0, -1),
  redis.call('HGETALL', fields_key(id)), open}
