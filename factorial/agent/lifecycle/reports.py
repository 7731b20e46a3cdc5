"""What tools report of their progress, by `execution_ctx.progress`: the event `tool_progress`, in order.

A plain tool reports from its thread, and an async one without awaiting anything, so the events are published in asyncio
tasks of their own. A step waits for its reports before the event about its end is published.
"""

import asyncio
from collections.abc import Awaitable, Callable

from factorial._core.text import safe_repr, shorten
from factorial.errors import ConfigError

__all__ = ["Reports", "report_data"]

_MOST_AT_ONCE = 100
"""Reports of one step that are all published. After that, one a second is: events of one owner are limited."""
_INTERVAL = 1.0
_LONGEST_TEXT = 1_000
"""Characters."""
_ROUNDING = 1e-9


def report_data(fraction: float, text: str) -> dict[str, object]:
    """The `data` of the event. Raises `ConfigError` for what cannot be reported."""
    given: object = fraction
    said: object = text
    if isinstance(given, bool) or not isinstance(given, int | float) or not -_ROUNDING <= given <= 1 + _ROUNDING:
        raise ConfigError(f"progress(fraction={safe_repr(given, 60)}): use a number from 0 to 1, where 1 is all")
    if not isinstance(said, str):
        raise ConfigError(f"progress(text={safe_repr(said, 60)}): give text")
    return {"fraction": min(max(float(fraction), 0.0), 1.0), "text": shorten(text, _LONGEST_TEXT)}


class Reports:
    """The reports of the steps of one turn. Used in the event loop only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._counts: dict[str, int] = {}
        self._accepted_at: dict[str, float] = {}
        self._latest: dict[str, asyncio.Task[None]] = {}
        """For each step with reports that were not published yet, the task that publishes the last one."""

    def accepts(self, key: str) -> bool:
        """Whether a report of the step `key` is to be published, and not left out because there are too many."""
        count, now = self._counts.get(key, 0) + 1, self._loop.time()
        if count > _MOST_AT_ONCE and now < self._accepted_at[key] + _INTERVAL:
            return False
        self._counts[key], self._accepted_at[key] = count, now
        return True

    def publish(self, key: str, call: Callable[[], Awaitable[None]]) -> None:
        """Await `call()`, which publishes a report of the step `key`, after the earlier ones."""
        before = self._latest.get(key)

        async def in_order() -> None:
            if before is not None:
                await asyncio.wait([before])
            await call()

        self._latest[key] = self._loop.create_task(in_order(), name=f"progress of {key}")
        self._latest[key].add_done_callback(_look_at_error)

    async def published(self, key: str) -> None:
        """Return when the reports of the step `key` are published. Raises what the last one raised."""
        if (latest := self._latest.pop(key, None)) is not None:
            await latest


def _look_at_error(task: "asyncio.Task[None]") -> None:
    """If nobody waits for the report any more, its error is dropped without a warning of asyncio's."""
    if not task.cancelled():
        task.exception()
