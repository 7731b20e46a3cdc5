#!lua flags=no-writes
-- One consistent view of a run.
--
-- ARGV     id
-- Answers  {{hash fields}, {conversation}, {context fields}}; empty lists if there is no such run
-- include: lib/args.lua
local id = take()
return {redis.call('HGETALL', run_key(id)), redis.call('LRANGE', conversation_key(id), 0, -1),
  redis.call('HGETALL', fields_key(id))}
