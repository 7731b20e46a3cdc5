"""The supervision tree: what it starts, watches and restarts, and by which rules.

`spec`, `intensity` and `strategy` are pure: no process, no clock of their own. `tree` carries their decisions
out on children, `process` is the one kind of child there is, `system` builds the tree of a `SystemConfig`, and
`__main__` is the command `python -m factorial.supervisor`.
"""
