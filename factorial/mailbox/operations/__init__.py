"""The operations on tasks: each module runs the Lua files next to it."""
