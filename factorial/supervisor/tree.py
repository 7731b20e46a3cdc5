"""A supervisor at work: carries out on real children what `strategy` decides.

The end of a child is told to `on_exit` at once, whatever else is going on. Restarts of children that do not concern
each other run side by side; a group restart is carried out before the next exit is looked at, as in OTP. A request to
stop interrupts both.
"""

import asyncio
import logging
import math
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, assert_never

from factorial.errors import SupervisionError
from factorial.supervisor.lifeline import LEAVE_SECONDS
from factorial.supervisor.spec import ChildExit, ChildSpec, ExitReason, Shutdown, Strategy, SupervisorFlags
from factorial.supervisor.strategy import (
    Decision,
    Finish,
    GiveUp,
    LeaveEnded,
    RestartChildren,
    Supervision,
    classify,
    signal_name,
)

__all__ = ["Child", "Tree"]

log = logging.getLogger(__name__)

_ON_EXIT_SECONDS = 5.0
"""How long the tree waits at its end for what `on_exit` is still doing."""


class Child(Protocol):
    """One incarnation of a child, as `process.ChildProcess` is."""

    process: str
    pid: int
    failure: str

    async def ready(self) -> bool: ...
    async def exited(self) -> int | None: ...
    def drain(self) -> None: ...
    def leave(self) -> None: ...
    def kill(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Member:
    spec: ChildSpec
    child: Child
    is_up: bool = False
    asked_with: signal.Signals | None = None
    exit: ChildExit | None = None
    gone: asyncio.Task[None] = field(init=False)


@dataclass(frozen=True, slots=True)
class _StartFailed:
    child_id: str
    error: SupervisionError


class Tree:
    """A supervisor and its children.

    `launch` starts the process of a child and returns without waiting for it; `on_exit` is called for every
    incarnation that has ended, also for those that were told to.
    """

    def __init__(
        self,
        flags: SupervisorFlags,
        specs: Iterable[ChildSpec],
        *,
        launch: Callable[[ChildSpec], Child],
        on_exit: Callable[[ChildExit], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules = Supervision(flags, specs)
        self._flags = flags
        self._launch = launch
        self._on_exit = on_exit
        self._clock = clock
        self._members: dict[str, _Member] = {}  # in the order of their start
        self._events: asyncio.Queue[_Member | _StartFailed | BaseException] = asyncio.Queue()
        self._restarts: set[asyncio.Task[None]] = set()
        self._tellings: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event, leave_now: asyncio.Event) -> None:
        """Start the children, in order, and supervise them until `stop`; `leave_now` cuts their time to stop short.

        Raises `SupervisionError` if a child cannot be started, or if there were too many restarts. However it
        ends, no child is left.
        """
        self._leave_now = asyncio.create_task(leave_now.wait())
        stopping = asyncio.create_task(stop.wait())
        work = asyncio.create_task(self._supervise())
        try:
            await asyncio.wait({work, stopping, self._leave_now}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            try:
                await self._abandon(work, stopping, *self._restarts)
                await self._shut_down()
            finally:
                self._leave_now.cancel()
                for member in self._members.values():
                    if not member.gone.done():
                        member.child.kill()
        if not work.cancelled():
            work.result()

    async def _supervise(self) -> None:
        for child_id in self._rules.start_order:
            await self._start(child_id)
        log.info("all %d children are ready", len(self._members))
        while True:
            event = await self._events.get()
            if isinstance(event, BaseException):
                raise event
            decision = self._decide(event)
            match decision:
                case LeaveEnded():
                    pass
                case RestartChildren():
                    await self._begin(decision)
                case Finish():
                    log.info("the significant children have ended: shutting down")
                    return
                case GiveUp():
                    raise SupervisionError(
                        f"the supervisor has given up: {decision.restarts} restarts within {self._flags.period:g} s, "
                        f"where intensity allows {self._flags.intensity}; the last: {_story(event)}"
                    )
                case _:
                    assert_never(decision)

    def _decide(self, event: _Member | _StartFailed) -> Decision:
        if isinstance(event, _StartFailed):
            log.error("%s", event.error)
            return self._rules.start_failed(event.child_id, self._clock())
        if self._members.get(event.spec.id) is not event or event.exit is None:
            return LeaveEnded()  # a group restart has replaced it meanwhile
        return self._rules.ended(event.spec.id, event.exit.reason, self._clock())

    async def _begin(self, plan: RestartChildren) -> None:
        if self._flags.strategy in (Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE):
            await self._restart(plan)
            return
        task = asyncio.create_task(self._restart(plan))
        self._restarts.add(task)
        task.add_done_callback(self._on_restarted)

    def _on_restarted(self, task: asyncio.Task[None]) -> None:
        self._restarts.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._events.put_nowait(error)

    async def _restart(self, plan: RestartChildren) -> None:
        for child_id in plan.terminate:
            await self._terminate(self._members[child_id])
            del self._members[child_id]
        if plan.delay:
            log.info("%s: waiting %.1f s before the next start", plan.start[0], plan.delay)
            await asyncio.sleep(plan.delay)
        for child_id in plan.start:
            try:
                await self._start(child_id)
            except SupervisionError as error:
                self._events.put_nowait(_StartFailed(child_id, error))
                return

    async def _start(self, child_id: str) -> None:
        """Start a child and wait until it is ready. Raises `SupervisionError` if it does not get there."""
        spec = self._rules.spec(child_id)
        member = _Member(spec, self._launch(spec))
        self._members[child_id] = member
        member.gone = asyncio.create_task(self._watch(member))
        try:
            async with asyncio.timeout(spec.start_timeout):
                is_ready = await member.child.ready()
        except TimeoutError:
            await self._kill(member)
            raise SupervisionError(
                f"child {child_id!r} could not be started: it was not ready within {spec.start_timeout:g} s"
            ) from None
        if not is_ready or member.exit:
            await member.gone
            raise SupervisionError(f"child {child_id!r} could not be started: {member.child.failure or member.exit}")
        member.is_up = True
        self._rules.started(child_id)
        log.info("%s (pid %d) is ready", member.child.process, member.child.pid)

    async def _watch(self, member: _Member) -> None:
        exitcode = await member.child.exited()
        reason = classify(exitcode, member.asked_with)
        member.exit = ChildExit(
            member.spec.id, member.child.process, member.child.pid, exitcode, signal_name(exitcode), reason
        )
        log.log(logging.WARNING if reason is ExitReason.ABNORMAL else logging.INFO, "%s: %s", member.exit, reason)
        telling = asyncio.create_task(self._tell(member.exit))
        self._tellings.add(telling)
        telling.add_done_callback(self._tellings.discard)
        if member.is_up and member.asked_with is None:
            self._events.put_nowait(member)

    async def _tell(self, exit: ChildExit) -> None:
        try:
            await self._on_exit(exit)
        except Exception:  # whatever happens to the one who is told, supervision goes on
            log.exception("what had to be done about the end of %s has failed", exit.process)

    async def _terminate(self, member: _Member) -> None:
        """Terminate a child as its spec says, and wait for its end."""
        if member.gone.done():
            return
        if member.spec.shutdown is Shutdown.BRUTAL_KILL:
            await self._kill(member)
            return
        member.asked_with = signal.SIGTERM
        member.child.drain()
        patience = member.spec.seconds_to_stop
        await self._first_of(member.gone, self._leave_now, timeout=None if math.isinf(patience) else patience)
        if not member.gone.done() and self._leave_now.done():
            member.child.leave()
            await self._first_of(member.gone, timeout=LEAVE_SECONDS)
        if not member.gone.done():
            log.warning("%s has not stopped in time: it is killed", member.child.process)
            member.child.kill()
        await asyncio.shield(member.gone)

    async def _kill(self, member: _Member) -> None:
        member.asked_with = signal.SIGKILL
        member.child.kill()
        await asyncio.shield(member.gone)

    async def _shut_down(self) -> None:
        members = list(reversed(self._members.values()))
        if self._flags.stop_together:
            await asyncio.gather(*(self._terminate(member) for member in members))
        else:
            for member in members:
                await self._terminate(member)
        if self._tellings:
            await asyncio.wait(self._tellings, timeout=_ON_EXIT_SECONDS)

    @staticmethod
    async def _first_of(*tasks: asyncio.Task[Any], timeout: float | None) -> None:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)

    @staticmethod
    async def _abandon(*tasks: asyncio.Task[Any]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _story(event: _Member | _StartFailed) -> str:
    return str(event.error if isinstance(event, _StartFailed) else event.exit)
