"""Checks the health of the children at a steady pace, and kills or replaces those that are unhealthy.

The silence of a child is counted in the monitor's own rounds: each round adds the time since the previous round, but
never more than the interval of the child's beats. So time during which the supervisor itself did not run (the machine
was suspended, or the process was stopped or starved) does not count as silence of its children.

A replacement does not count as a restart. So a child that was replaced for its memory is not replaced for that reason
again for a minute. If its successors are above the limit from their start, this pause doubles each time.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn, Protocol, assert_never

from factorial.supervisor.process.usage import descendants
from factorial.supervisor.rules.health import PACE, Figures, Kill, Replace, Well, judge, pace
from factorial.supervisor.rules.spec import ChildSpec

__all__ = ["Monitor"]

_logger = logging.getLogger(__name__)

_COUNT_SECONDS = 5.0
"""Seconds between two counts of all processes of the machine. A count takes some milliseconds."""
_SECONDS_TO_WRITE_STACKS = 0.5
_FROM_START_SECONDS = 30.0
"""A process that exceeds its soft limit at this age or earlier has exceeded it from its start."""
_MIN_PAUSE, _MAX_PAUSE = 60.0, 3600.0
"""Seconds between two replacements of one child for its memory."""


class _Watched(Protocol):
    """A process that is ready and was not asked to end: what the monitor uses of a `ChildProcess`."""

    spec: ChildSpec
    process: str
    figures: Figures
    silence: float

    @property
    def age(self) -> float: ...
    def measure(self, below: Mapping[int, int]) -> None: ...
    def dump(self) -> None: ...
    def kill(self, why: str = "") -> None: ...


@dataclass(slots=True)
class _Pause:
    """The time after a replacement of a child for its memory, successful or not, in which it is not replaced again."""

    limit: int | None
    """The child's soft limit at the time. A changed limit ends the pause."""
    since: float = -math.inf
    seconds: float = 0.0
    """For a process that is above the limit from its start. For others the pause is `_MIN_PAUSE`."""
    is_logged: bool = False


class Monitor:
    """Watches the processes that `watched` returns. `replace(child id, process)` replaces one of them, and returns when
    that is done or has failed. Only one is replaced at a time."""

    def __init__(
        self,
        watched: Callable[[], Iterable[_Watched]],
        replace: Callable[[str, str], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watched = watched
        self._replace = replace
        self._clock = clock
        self._below: Mapping[int, int] = {}
        self._counted_at = -_COUNT_SECONDS
        self._being_killed: set[str] = set()
        self._kills: set[asyncio.Task[None]] = set()
        self._replacement: asyncio.Task[None] | None = None
        self._above_from_start: dict[str, bool] = {}
        self._pauses: dict[str, _Pause] = {}

    async def run(self) -> NoReturn:
        """Watch until cancelled. A failure in a round is logged, and does not end the watch."""
        last, interval = self._clock(), PACE
        try:
            while True:
                await asyncio.sleep(interval)
                elapsed = self._clock() - last
                last += elapsed
                try:
                    interval = self._round(elapsed, last)
                except Exception:  # a bug in one round must not leave the children unwatched
                    _logger.exception("the health check of the children failed and will be repeated")
        finally:
            for task in (*self._kills, self._replacement):
                if task is not None:
                    task.cancel()

    def _round(self, elapsed: float, now: float) -> float:
        """Check all of them. Returns the seconds until the next round."""
        if now - self._counted_at >= _COUNT_SECONDS:
            self._below, self._counted_at = descendants(), now
        watched = list(self._watched())
        running = {child.process for child in watched}
        self._being_killed &= running
        self._above_from_start = {name: was for name, was in self._above_from_start.items() if name in running}
        for child in watched:
            if child.process in self._being_killed:
                continue
            try:
                self._check(child, elapsed)
            except Exception:  # a failure for one child must not keep the others unchecked
                _logger.exception("the health check of %s failed", child.process)
        return min([PACE, *(pace(child.spec.health) for child in watched)])

    def _check(self, child: _Watched, elapsed: float) -> None:
        child.silence += min(elapsed, pace(child.spec.health))
        child.measure(self._below)
        match verdict := judge(child.spec.health, child.figures, child.silence, child.age):
            case Well():
                pass
            case Kill():
                _logger.error("%s is killed: %s", child.process, verdict.why)
                self._being_killed.add(child.process)
                self._kill(child, verdict)
            case Replace():
                self._replace_unless_paused(child, verdict.why)
            case _:
                assert_never(verdict)

    def _replace_unless_paused(self, child: _Watched, why: str) -> None:
        """Replace a child that is above its soft limit, unless it was replaced for that not long ago."""
        child_id, limit = child.spec.id, child.spec.health.soft_memory
        from_start = self._above_from_start.setdefault(child.process, child.age <= _FROM_START_SECONDS)
        if self._replacement is not None:
            return
        pause = self._pauses.get(child_id)
        if pause is None or pause.limit != limit:
            pause = self._pauses[child_id] = _Pause(limit)
        if from_start and pause.seconds and not pause.is_logged:
            _logger.warning("%s is above soft_memory_mb from its start: raise the limit (%s)", child_id, why)
            pause.is_logged = True
        seconds = pause.seconds if from_start else min(pause.seconds, _MIN_PAUSE)
        if self._clock() < pause.since + seconds:
            return
        pause.seconds = min(max(2 * seconds, _MIN_PAUSE), _MAX_PAUSE) if from_start else _MIN_PAUSE
        _logger.warning("%s will be replaced: %s", child.process, why)
        self._replacement = asyncio.create_task(self._replace_now(child, pause))

    def _kill(self, child: _Watched, verdict: Kill) -> None:
        if not verdict.stacks:
            child.kill(verdict.why)
            return
        child.dump()
        task = asyncio.create_task(self._kill_after_stacks(child, verdict.why))
        self._kills.add(task)
        task.add_done_callback(self._kills.discard)

    async def _kill_after_stacks(self, child: _Watched, why: str) -> None:
        """Give the child time to write its stacks, then kill it, even if it has become responsive meanwhile."""
        await asyncio.sleep(_SECONDS_TO_WRITE_STACKS)
        child.kill(why)

    async def _replace_now(self, child: _Watched, pause: _Pause) -> None:
        try:
            await self._replace(child.spec.id, child.process)
        except Exception as failed:  # the child and the supervision of it go on
            _logger.error("%s could not be replaced and keeps running: %s", child.process, failed)
        finally:
            pause.since = self._clock()
            self._replacement = None
