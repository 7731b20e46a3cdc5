"""The supervision tree: starts, watches and restarts the processes of a system.

From the bottom: `rules/` is pure. `tree/` carries the rules out on children. `process/` has the operating-system
processes that are its leaves. `operate/` has what an operator can order. `service/` puts them together into a running
supervisor, which `python -m factorial.supervisor` starts.
"""
