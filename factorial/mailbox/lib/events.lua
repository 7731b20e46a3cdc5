-- Publishes an event: adds it to its owner's stream, and sends it with its id to the subscribers of the owner's
-- channel. A script renews the stream's time to live once, whatever the number of its events.
local renewed = {}

local function publish(owner, event)
  -- Neither command may abort the script: what it has already written would stay, and its run would be in no place.
  local id = redis.pcall('XADD', events_key(owner), 'MAXLEN', '~', EVENTS_MAX, '*', 'e', event)
  if type(id) == 'table' then -- the stream is damaged
    return '0-0'
  end
  if not renewed[owner] then
    renewed[owner] = true
    redis.call('PEXPIRE', events_key(owner), EVENTS_TTL_MS)
  end
  redis.pcall('PUBLISH', channel_key(owner), string.sub(event, 1, -2) .. ',"id":"' .. id .. '"}')
  return id
end
