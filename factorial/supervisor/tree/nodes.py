"""The shape of a supervisor's report, and the check of one that comes from Redis. Pure.

    report       supervisor, host, pid, version, config, started_at (seconds since 1970), uptime, state, tree
    supervisor   id, type, state, strategy, restarts (within the window), intensity, period, last_exit, last_exit_ago,
                 children
    worker       id, type, state, process, pid, uptime, restarts, last_exit, last_exit_ago, the figures of the process
                 (tasks, rss in bytes, cpu in percent, open_files, descendants, lag in seconds), and predecessors: the
                 processes that drain because this one has replaced them
    state        starting | running | draining | drained | restarting | ended | gave up

A `worker` is a worker process. Times are in seconds. Unknown values are left out, or None.

Any client of the server can write there: another release, or a faulty program. Values that do not fit are left out, and
control characters are removed, because they would affect a terminal.
"""

import math
from collections.abc import Mapping
from typing import Any

from factorial._core.text import one_line

__all__ = ["Node", "checked_report"]

Node = dict[str, Any]

_TEXTS = frozenset(
    {"id", "type", "state", "strategy", "process", "last_exit", "supervisor", "host", "version", "config"}
)
_NUMBERS = frozenset({
    "pid", "uptime", "restarts", "intensity", "period", "last_exit_ago", "started_at",
    "tasks", "rss", "cpu", "open_files", "descendants", "lag",
})  # fmt: skip
_DEEPEST = 10


def checked_report(report: Mapping[str, Any]) -> Node:
    """The valid part of `report`."""
    return _scalars(report) | {"tree": _node(report.get("tree"), 0)}


def _node(found: Any, depth: int) -> Node:
    if not isinstance(found, Mapping) or depth > _DEEPEST:
        return {"id": "?", "type": "worker"}
    node: Node = {"id": "?", "type": "worker"} | _scalars(found)
    for name in ("children", "predecessors"):
        if isinstance(below := found.get(name), list):
            node[name] = [_node(child, depth + 1) for child in below]
    if node["type"] == "supervisor":
        node.setdefault("children", [])
    return node


def _scalars(found: Mapping[str, Any]) -> Node:
    fit: Node = {}
    for name, value in found.items():
        if value is None and name in _TEXTS | _NUMBERS:
            fit[name] = None
        elif name in _TEXTS and isinstance(value, str):
            fit[name] = one_line(value)
        elif name in _NUMBERS and isinstance(value, int | float) and math.isfinite(value):
            fit[name] = value
    return fit
