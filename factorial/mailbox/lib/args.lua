-- Reads ARGV from left to right: single values, and lists, each preceded by its length.
local args_read = 0

local function take()
  args_read = args_read + 1
  return ARGV[args_read]
end

local function take_number()
  return tonumber(take())
end

local function extend(list, items)
  for _, item in ipairs(items) do
    list[#list + 1] = item
  end
end

local function take_list()
  local items = {}
  for i = 1, take_number() do
    items[i] = take()
  end
  return items
end
