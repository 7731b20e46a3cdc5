"""A supervisor below a supervisor: a tree in the same process, as a child of another tree."""

import asyncio
import logging
import os
from typing import Any, Generic, Protocol, TypeVar

from factorial.errors import SupervisionError
from factorial.supervisor.rules.spec import ChildExit, ExitReason, SupervisorFlags

__all__ = ["Branch", "GaveUp"]

_logger = logging.getLogger(__name__)


class GaveUp(SupervisionError):
    """A supervisor had more restarts than its intensity allows.

    `last`: the failure that was one too many, as a sentence; `cause`: the same in a few words. `summary` combines
    `cause` with the number of restarts.
    """

    def __init__(self, supervisor: str, flags: SupervisorFlags, restarts: int, *, last: str, cause: str) -> None:
        self.summary: str = f"gave up: {cause.removeprefix('gave up: ')}; {restarts} restarts within {flags.period:g} s"
        super().__init__(
            f"supervisor {supervisor!r} has given up: {restarts} restarts within {flags.period:g} s, where intensity "
            f"allows {flags.intensity}; the last: {last}"
        )


class _Supervisor(Protocol):
    id: str
    started: asyncio.Event

    async def run(self, stop: asyncio.Event, leave_now: asyncio.Event) -> None: ...
    def kill(self) -> None: ...


_T = TypeVar("_T", bound=_Supervisor)


class Branch(Generic[_T]):
    """A tree as a child.

    When it gives up it ends with the reason `shutdown`, as in OTP: a permanent one is started again by its parent, a
    transient or temporary one is not.
    """

    def __init__(self, tree: _T) -> None:
        self.tree = tree
        self.process: str = tree.id
        self.pid: int = os.getpid()
        self.failure: str = ""
        """Why it ended, if something went wrong."""
        self._stop, self._leave_now = asyncio.Event(), asyncio.Event()
        self._life = asyncio.create_task(tree.run(self._stop, self._leave_now))

    async def ready(self) -> bool:
        """Wait until all children are; `False` if one could not be started."""
        started = asyncio.create_task(self.tree.started.wait())
        try:
            await asyncio.wait({started, self._life}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            started.cancel()
        if not self._life.done():
            return True
        await self.exited()
        return False

    async def exited(self) -> ChildExit:
        """Wait for its end."""
        await asyncio.wait({self._life})
        reason, why = ExitReason.SHUTDOWN, ""
        asked = self._stop.is_set()
        if not self._life.cancelled() and (error := self._life.exception()):
            self.failure = str(error)
            why = error.summary if isinstance(error, GaveUp) else self.failure
            if not isinstance(error, SupervisionError):
                reason = ExitReason.ABNORMAL
                _logger.error("the supervisor %s has failed", self.process, exc_info=error)
        return ChildExit(self.process, self.process, self.pid, None, None, reason, asked, why)

    def drain(self) -> None:
        """Stop the children gracefully."""
        self._stop.set()

    def leave(self) -> None:
        """Have the children leave now."""
        self._stop.set()
        self._leave_now.set()

    def kill(self, why: str = "") -> None:
        """End all its processes at once."""
        self.leave()
        self.tree.kill()

    def report(self) -> dict[str, Any]:
        """A branch is no process: it has no figures."""
        return {}
