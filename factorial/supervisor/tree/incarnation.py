"""One incarnation of a child, from its start to its end: a process, or a supervisor below a supervisor.

A child that is restarted or replaced has one incarnation after the other. During a replacement it has two.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from factorial.errors import SupervisionError
from factorial.supervisor.rules.spec import LEAVE_SECONDS, ChildExit, ChildSpec, ExitReason, Spec

__all__ = ["Child", "Incarnation", "Incarnations", "OnExit"]

_logger = logging.getLogger(__name__)

_ON_EXIT_SECONDS = 2.0

OnExit = Callable[[ChildExit], Awaitable[None]]


class Child(Protocol):
    """What runs: a `process.child_process.ChildProcess`, or a `branch.Branch`."""

    process: str
    pid: int
    failure: str

    async def ready(self) -> bool: ...
    async def exited(self) -> ChildExit: ...
    def drain(self) -> None: ...
    def leave(self) -> None: ...
    def kill(self, why: str = "") -> None: ...
    def report(self) -> dict[str, Any]: ...


@dataclass(slots=True, eq=False)
class Incarnation:
    """One incarnation of a child, and how far it has come."""

    spec: Spec
    child: Child
    started_at: float
    is_up: bool = False
    is_asked: bool = False
    """The supervisor has asked it to end."""
    exit: ChildExit | None = None
    gone: asyncio.Task[None] = field(init=False)

    @property
    def is_running(self) -> bool:
        """It is ready, and was not asked to end."""
        return self.is_up and not self.is_asked and self.exit is None


class Incarnations:
    """The living incarnations of one supervisor's children.

    `on_exit` is called for each process that has ended; `on_change` when anything about an incarnation changes;
    `on_lost` for an incarnation that was ready and has ended without a request.
    """

    def __init__(
        self,
        *,
        on_exit: OnExit,
        on_change: Callable[[], None],
        on_lost: Callable[[Incarnation], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.alive: dict[Incarnation, None] = {}
        """All of them, the oldest first: also successors that are not ready yet, and predecessors that drain."""
        self.last_exits: dict[str, tuple[ChildExit, float]] = {}
        """How the latest incarnation of a child ended, and when, by the child's id."""
        self.leave_now: asyncio.Event = asyncio.Event()
        """Set when each child has to end within `LEAVE_SECONDS`."""
        self._on_exit = on_exit
        self._on_change = on_change
        self._on_lost = on_lost
        self._now = clock
        self._on_exit_calls: set[asyncio.Task[None]] = set()

    def add(self, spec: Spec, child: Child) -> Incarnation:
        """Watch `child`, which has just been started for `spec`."""
        incarnation = Incarnation(spec, child, self._now())
        self.alive[incarnation] = None
        incarnation.gone = asyncio.create_task(self._watch(incarnation))
        self._on_change()
        return incarnation

    async def until_ready(self, incarnation: Incarnation) -> None:
        """Wait until the incarnation is ready. Raises `SupervisionError` if it ends first, or takes too long."""
        spec, child = incarnation.spec, incarnation.child
        timeout = spec.start_timeout if isinstance(spec, ChildSpec) else None
        try:
            async with asyncio.timeout(timeout):
                is_ready = await child.ready()
        except TimeoutError:
            await self._kill(incarnation)
            raise SupervisionError(
                f"child {spec.id!r} could not be started: it was not ready within {timeout:g} s"
            ) from None
        if not is_ready or incarnation.exit or incarnation.is_asked:
            await asyncio.shield(incarnation.gone)
            is_explained = not isinstance(spec, ChildSpec) and child.failure
            prefix = "" if is_explained else f"child {spec.id!r} could not be started: "
            raise SupervisionError(f"{prefix}{child.failure or incarnation.exit}")
        incarnation.is_up = True
        self._on_change()
        if isinstance(spec, ChildSpec):
            _logger.info("%s (pid %d) is ready", child.process, child.pid)

    async def terminate(self, incarnation: Incarnation) -> None:
        """Terminate a child as its specification says, and wait for its end."""
        if incarnation.gone.done():
            return
        incarnation.is_asked = True
        self._on_change()
        incarnation.child.drain()
        process = incarnation.spec if isinstance(incarnation.spec, ChildSpec) else None
        # A supervisor has no time limit of its own: each of its children has one.
        await self._until_gone_or_leaving(incarnation, process.shutdown if process else None)
        if not incarnation.gone.done() and self.leave_now.is_set():
            incarnation.child.leave()
            await asyncio.wait({incarnation.gone}, timeout=LEAVE_SECONDS if process else None)
        if not incarnation.gone.done():
            _logger.warning("%s has not stopped in time: it is killed", incarnation.child.process)
            incarnation.child.kill()
        await asyncio.shield(incarnation.gone)

    async def terminate_all(self) -> None:
        """Terminate all at once, also those that an operator starts meanwhile. Then wait for the calls of `on_exit`."""
        while self.alive:
            await asyncio.gather(*(self.terminate(incarnation) for incarnation in reversed(self.alive)))
        if self._on_exit_calls:
            await asyncio.wait(self._on_exit_calls, timeout=_ON_EXIT_SECONDS)

    def kill_all(self) -> None:
        """End all at once."""
        for incarnation in list(self.alive):
            incarnation.child.kill()

    async def _kill(self, incarnation: Incarnation) -> None:
        incarnation.is_asked = True
        incarnation.child.kill()
        await asyncio.shield(incarnation.gone)

    async def _until_gone_or_leaving(self, incarnation: Incarnation, timeout: float | None) -> None:
        leaving = asyncio.create_task(self.leave_now.wait())
        try:
            await asyncio.wait({incarnation.gone, leaving}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()

    async def _watch(self, incarnation: Incarnation) -> None:
        exit = incarnation.exit = await incarnation.child.exited()
        self.alive.pop(incarnation, None)
        self._on_change()
        self.last_exits[incarnation.spec.id] = (exit, self._now())
        if isinstance(incarnation.spec, ChildSpec):
            level = logging.WARNING if exit.reason is ExitReason.ABNORMAL else logging.INFO
            _logger.log(level, "%s: %s", exit, exit.reason)
            call = asyncio.create_task(self._call_on_exit(exit))
            self._on_exit_calls.add(call)
            call.add_done_callback(self._on_exit_calls.discard)
        elif incarnation.child.failure:
            _logger.error("%s", incarnation.child.failure)
        if incarnation.is_up and not incarnation.is_asked:
            self._on_lost(incarnation)

    async def _call_on_exit(self, exit: ChildExit) -> None:
        try:
            await self._on_exit(exit)
        except Exception:  # supervision goes on, whatever fails there
            _logger.exception("the follow-up to the end of %s has failed", exit.process)
