-- One event: stored in its owner's stream, and sent to whoever listens now, with its id.
local function publish(owner, event)
  local id = redis.call('XADD', events_key(owner), 'MAXLEN', '~', EVENTS_MAX, '*', 'e', event)
  redis.call('PEXPIRE', events_key(owner), EVENTS_TTL_MS)
  redis.call('PUBLISH', channel_key(owner), '{"id":"' .. id .. '",' .. string.sub(event, 2))
  return id
end
