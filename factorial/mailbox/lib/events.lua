-- One event: stored in its owner's stream, and sent to whoever listens now, with its id.
-- The stream's time to live begins anew, once for all the events of a script.
local prolonged = {}

local function publish(owner, event)
  -- Neither must break a script off half-way: what it has begun would not be undone, and its run would be in no place.
  local id = redis.pcall('XADD', events_key(owner), 'MAXLEN', '~', EVENTS_MAX, '*', 'e', event)
  if type(id) == 'table' then -- the stream was damaged
    return '0-0'
  end
  if not prolonged[owner] then
    prolonged[owner] = true
    redis.call('PEXPIRE', events_key(owner), EVENTS_TTL_MS)
  end
  redis.pcall('PUBLISH', channel_key(owner), string.sub(event, 1, -2) .. ',"id":"' .. id .. '"}')
  return id
end
