"""Orders: what an operator can ask of a running supervisor, as data and as calls."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Protocol

from factorial._core.text import one_line, shorten
from factorial.errors import SupervisionError

__all__ = ["USAGE", "Operations", "operation", "summary"]

USAGE = "usage"
"""The `kind` of an answer to an order that is wrong in itself: to repeat it is of no use."""


class Operations(Protocol):
    """The operations of a running system.

    A target is the id of a group, a runner or a process; "" means everything. Each operation returns one line that
    says what was done. It raises `ConfigError` for a target that does not exist, and `SupervisionError` for what cannot
    be done now. A caller holds `turn`, except for `stop`, which can be called at any time.
    """

    @property
    def turn(self) -> asyncio.Lock:
        """Held by the task that changes the tree."""
        ...

    @property
    def changed(self) -> asyncio.Event:
        """Set when `report` returns something else than before."""
        ...

    def report(self) -> dict[str, Any]:
        """The state of the supervisor and of its tree (`tree/nodes.py`)."""
        ...

    async def drain(self, target: str) -> str:
        """Drain processes and start none in their place."""
        ...

    async def resume(self, target: str) -> str:
        """Start what was drained."""
        ...

    async def restart(self, target: str) -> str:
        """Replace processes one by one. Each successor is ready before its predecessor is drained."""
        ...

    async def scale(self, runner: str, processes: int) -> str:
        """Set the number of processes of a runner."""
        ...

    async def stop(self, now: bool) -> str:
        """Begin to stop the system: gracefully, or now."""
        ...


def operation(operations: Operations, order: Mapping[str, Any]) -> Callable[[], Awaitable[str]]:
    """The call that `order` asks for. Raises `SupervisionError` if this release does not know it."""
    match order:
        case {"verb": "drain", "target": str(target)}:
            return partial(operations.drain, target)
        case {"verb": "resume", "target": str(target)}:
            return partial(operations.resume, target)
        case {"verb": "restart", "target": str(target)}:
            return partial(operations.restart, target)
        case {"verb": "scale", "runner": str(runner), "processes": int(processes)} if processes is not True:
            return partial(operations.scale, runner, processes)
        case {"verb": "stop", "now": bool(now)}:
            return partial(operations.stop, now)
    raise SupervisionError(f"this supervisor does not know this order: {summary(order)}")


def summary(order: Mapping[str, Any]) -> str:
    """An order in a few words, as an operator would type it."""
    words = (str(value) if key != "now" else "--now" * bool(value) for key, value in order.items())
    return one_line(shorten(" ".join(word for word in words if word), 200))
