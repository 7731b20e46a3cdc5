"""A supervisor at work: carries out on real children what `strategy` decides.

The end of a child is told to `on_exit` at once, whatever else is going on. Restarts of children that do not concern
each other run side by side; a group restart is carried out before the next exit is looked at, as in OTP. A request to
stop interrupts both.

A child that is a supervisor itself is a `Branch`: a tree in the same process. What an operator may want beyond OTP
(`replace`, `suspend`, `resume`, `apply`) is done under the lock of the child that it concerns, so that it never crosses
a restart.
"""

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, assert_never

from factorial.errors import SupervisionError
from factorial.supervisor.lifeline import LEAVE_SECONDS
from factorial.supervisor.spec import (
    ChildExit,
    ChildSpec,
    ExitReason,
    Shutdown,
    Spec,
    Strategy,
    SupervisorSpec,
)
from factorial.supervisor.strategy import (
    ChildState,
    Decision,
    Finish,
    GiveUp,
    LeaveEnded,
    RestartChildren,
    Supervision,
)

__all__ = ["Branch", "Child", "Member", "Tree"]

log = logging.getLogger(__name__)

_ON_EXIT_SECONDS = 5.0
"""How long the tree waits at its end for what `on_exit` is still doing."""

Launch = Callable[[ChildSpec], "Child"]
OnExit = Callable[[ChildExit], Awaitable[None]]


class Child(Protocol):
    """One incarnation of a child: a `process.ChildProcess`, or a `Branch`."""

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
class Member:
    """One incarnation of a child, and how far it has come."""

    spec: Spec
    child: Child
    started_at: float
    is_up: bool = False
    is_asked: bool = False
    exit: ChildExit | None = None
    gone: asyncio.Task[None] = field(init=False)

    @property
    def is_running(self) -> bool:
        """It is ready, and nobody has asked it to end."""
        return self.is_up and not self.is_asked and self.exit is None


@dataclass(frozen=True, slots=True)
class _StartFailed:
    child_id: str
    error: SupervisionError


class Tree:
    """A supervisor and its children.

    `launch` starts the process of a child and returns without waiting for it; `on_exit` is called for every
    incarnation of a process that has ended, also for those that were told to; `on_change`, when `report` has become
    another.
    """

    def __init__(
        self,
        spec: SupervisorSpec,
        *,
        launch: Launch,
        on_exit: OnExit,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = spec.id
        self.started = asyncio.Event()
        """All children are ready for the first time."""
        self._rules = Supervision(spec.flags, spec.children)
        self._launch = launch
        self._on_exit = on_exit
        self._on_change = on_change
        self._clock = clock
        self._current: dict[str, Member] = {}
        self._alive: set[Member] = set()  # also successors that are not up yet, and predecessors that drain
        self._last_exits: dict[str, tuple[ChildExit, float]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._events: asyncio.Queue[Member | _StartFailed | BaseException] = asyncio.Queue()
        self._restarts: set[asyncio.Task[None]] = set()
        self._tellings: set[asyncio.Task[None]] = set()
        self._is_closing = False

    # -- the life of a supervisor

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
            self._is_closing = True
            try:
                await self._abandon(work, stopping, *self._restarts)
                await self._shut_down()
            finally:
                self._leave_now.cancel()
                for member in self._alive:
                    member.child.kill()
        if not work.cancelled():
            work.result()

    async def _supervise(self) -> None:
        await self._start_all()
        self.started.set()
        self._on_change()
        log.info("%s is up, with %d children", self.id, len(self._current))
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
                    log.info("%s: the significant children have ended: shutting down", self.id)
                    return
                case GiveUp():
                    raise SupervisionError(
                        f"supervisor {self.id!r} has given up: {decision.restarts} restarts within "
                        f"{self._rules.flags.period:g} s, where intensity allows {self._rules.flags.intensity}; "
                        f"the last: {_story(event)}"
                    )
                case _:
                    assert_never(decision)

    async def _start_all(self) -> None:
        if not self._rules.flags.together:
            for child_id in self._rules.start_order:
                await self._start(child_id)
            return
        try:
            async with asyncio.TaskGroup() as starting:
                for child_id in self._rules.start_order:
                    starting.create_task(self._start(child_id))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    def _decide(self, event: Member | _StartFailed) -> Decision:
        child_id = event.child_id if isinstance(event, _StartFailed) else event.spec.id
        if isinstance(event, _StartFailed):
            log.error("%s", event.error)
        if child_id not in self._rules or self._rules.state(child_id) is ChildState.SUSPENDED:
            return LeaveEnded()  # somebody has taken it out of service meanwhile
        if isinstance(event, _StartFailed):
            return self._rules.start_failed(child_id, self._clock())
        if self._current.get(child_id) is not event or event.exit is None:
            return LeaveEnded()  # another incarnation has taken its place meanwhile
        return self._rules.ended(child_id, event.exit.reason, self._clock())

    async def _begin(self, plan: RestartChildren) -> None:
        if self._rules.flags.strategy in (Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE):
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
        async with self._locked(*plan.start):
            for child_id in plan.terminate:
                if member := self._current.pop(child_id, None):
                    await self._terminate(member)
            if plan.delay:
                log.info("%s: waiting %.1f s before the next start", plan.start[0], plan.delay)
                await asyncio.sleep(plan.delay)
            for child_id in plan.start:
                if self._is_restarting(child_id):
                    try:
                        await self._start(child_id)
                    except SupervisionError as error:
                        self._events.put_nowait(_StartFailed(child_id, error))
                        return

    def _is_restarting(self, child_id: str) -> bool:
        """Whether that is still so: while the lock was waited for, it may have been replaced, suspended or removed."""
        return child_id in self._rules and self._rules.state(child_id) is ChildState.RESTARTING

    # -- one incarnation

    async def _start(self, child_id: str) -> None:
        """Start a child and wait until it is ready. Raises `SupervisionError` if it does not get there."""
        member = self._current[child_id] = self._bear(self._rules.spec(child_id))
        await self._until_up(member)
        self._rules.started(child_id)

    def _bear(self, spec: Spec) -> Member:
        if self._is_closing:
            raise SupervisionError(f"child {spec.id!r} is not started: the supervisor is shutting down")
        member = Member(spec, self._launch_any(spec), self._clock())
        self._alive.add(member)
        member.gone = asyncio.create_task(self._watch(member))
        self._on_change()
        return member

    def _launch_any(self, spec: Spec) -> Child:
        if isinstance(spec, ChildSpec):
            return self._launch(spec)
        below = Tree(spec, launch=self._launch, on_exit=self._on_exit, on_change=self._on_change, clock=self._clock)
        return Branch(below)

    async def _until_up(self, member: Member) -> None:
        spec, child = member.spec, member.child
        patience = spec.start_timeout if isinstance(spec, ChildSpec) else None
        try:
            async with asyncio.timeout(patience):
                is_ready = await child.ready()
        except TimeoutError:
            await self._kill(member)
            raise SupervisionError(
                f"child {spec.id!r} could not be started: it was not ready within {patience:g} s"
            ) from None
        if not is_ready or member.exit:
            await member.gone
            if isinstance(child, Branch) and child.failure:
                raise SupervisionError(child.failure)
            raise SupervisionError(f"child {spec.id!r} could not be started: {child.failure or member.exit}")
        member.is_up = True
        self._on_change()
        if isinstance(spec, ChildSpec):
            log.info("%s (pid %d) is ready", child.process, child.pid)

    async def _watch(self, member: Member) -> None:
        exit = member.exit = await member.child.exited()
        self._alive.discard(member)
        self._on_change()
        self._last_exits[member.spec.id] = (exit, self._clock())
        if isinstance(member.spec, ChildSpec):
            log.log(
                logging.WARNING if exit.reason is ExitReason.ABNORMAL else logging.INFO, "%s: %s", exit, exit.reason
            )
            telling = asyncio.create_task(self._tell(exit))
            self._tellings.add(telling)
            telling.add_done_callback(self._tellings.discard)
        elif exit.why:
            log.error("%s", exit.why)
        if member.is_up and not member.is_asked:
            self._events.put_nowait(member)

    async def _tell(self, exit: ChildExit) -> None:
        try:
            await self._on_exit(exit)
        except Exception:  # whatever happens to the one who is told, supervision goes on
            log.exception("what had to be done about the end of %s has failed", exit.process)

    async def _terminate(self, member: Member) -> None:
        """Terminate a child as its spec says, and wait for its end."""
        if member.gone.done():
            return
        if member.spec.shutdown is Shutdown.BRUTAL_KILL:
            await self._kill(member)
            return
        member.is_asked = True
        self._on_change()
        member.child.drain()
        patience = member.spec.seconds_to_stop
        await self._first_of(member.gone, self._leave_now, timeout=None if math.isinf(patience) else patience)
        if not member.gone.done() and self._leave_now.done():
            member.child.leave()
            is_branch = isinstance(member.child, Branch)  # which gives each of its children that time
            await self._first_of(member.gone, timeout=None if is_branch else LEAVE_SECONDS)
        if not member.gone.done():
            log.warning("%s has not stopped in time: it is killed", member.child.process)
            member.child.kill()
        await asyncio.shield(member.gone)

    async def _kill(self, member: Member) -> None:
        member.is_asked = True
        member.child.kill()
        await asyncio.shield(member.gone)

    async def _shut_down(self) -> None:
        spare = [member for member in self._alive if self._current.get(member.spec.id) is not member]
        await asyncio.gather(*(self._terminate(member) for member in spare))
        for child_ids in self._rules.shutdown_order:
            members = [self._current[child_id] for child_id in child_ids if child_id in self._current]
            await asyncio.gather(*(self._terminate(member) for member in members))
        if self._tellings:
            await asyncio.wait(self._tellings, timeout=_ON_EXIT_SECONDS)

    def kill(self) -> None:
        """End all processes of this tree at once."""
        for member in self._alive:
            member.child.kill()

    # -- what an operator may ask for

    async def replace(self, child_id: str, spec: Spec | None = None) -> None:
        """Extension: start a successor, from `spec` if it is given, and when it is ready, drain the predecessor.

        It counts as no restart. Raises `SupervisionError` if the successor does not get ready: then the predecessor
        stays.
        """
        async with self._locked(child_id):
            predecessor = self._current.get(child_id)
            successor = self._bear(spec or self._rules.spec(child_id))
            await self._until_up(successor)
            self._rules.revise(successor.spec)
            self._rules.started(child_id)
            self._current[child_id] = successor
            if predecessor is not None:
                await self._terminate(predecessor)

    async def suspend(self, child_id: str) -> None:
        """Terminate a child, and keep it for `resume` (OTP's `terminate_child`)."""
        async with self._locked(child_id):
            self._rules.suspend(child_id)
            if member := self._current.pop(child_id, None):
                await self._terminate(member)

    async def resume(self, child_id: str) -> None:
        """Start a child that was suspended or has ended (OTP's `restart_child`). Raises `SupervisionError`."""
        async with self._locked(child_id):
            if self._rules.state(child_id) not in (ChildState.SUSPENDED, ChildState.ENDED):
                return
            try:
                await self._start(child_id)
            except SupervisionError:
                self._rules.suspend(child_id)
                raise

    async def apply(self, spec: SupervisorSpec, *, roll: bool) -> None:
        """Become what `spec` says, one child after the other: stop what is gone, start what is new, replace what has
        changed; with `roll`, replace all that runs.

        Raises `SupervisionError` where something cannot be started; what was done before stays, and nothing that ran
        has been lost.
        """
        wanted = {child.id: child for child in spec.children}
        for child_id in reversed(self._rules.start_order):
            if child_id not in wanted:
                await self._remove(child_id)
        self._rules.flags = spec.flags
        for child in wanted.values():
            if child.id not in self._rules:
                await self._add(child)
            elif isinstance(branch := self._branch(child.id), Branch) and isinstance(child, SupervisorSpec):
                self._rules.revise(child)
                await branch.tree.apply(child, roll=roll)
            elif self._rules.state(child.id) in (ChildState.SUSPENDED, ChildState.ENDED):
                self._rules.revise(child)
            elif roll or child != self._rules.spec(child.id):
                await self.replace(child.id, child)
        self._rules.reorder(wanted)

    async def _add(self, spec: Spec) -> None:
        async with self._locked(spec.id):
            self._rules.add(spec)
            try:
                await self._start(spec.id)
            except SupervisionError:
                self._rules.remove(spec.id)
                self._current.pop(spec.id, None)
                raise

    async def _remove(self, child_id: str) -> None:
        async with self._locked(child_id):
            self._rules.suspend(child_id)
            if member := self._current.pop(child_id, None):
                await self._terminate(member)
            self._rules.remove(child_id)
            self._last_exits.pop(child_id, None)

    # -- what there is

    def find(self, child_id: str) -> "tuple[Tree, Spec] | None":
        """The supervisor that has the child of this id, at whatever depth, and the child's spec."""
        if child_id in self._rules:
            return self, self._rules.spec(child_id)
        return next((found for branch in self._branches() if (found := branch.tree.find(child_id))), None)

    def child_ids(self) -> Iterator[str]:
        """The ids of all children, at whatever depth."""
        for child_id in self._rules.start_order:
            yield child_id
            if branch := self._branch(child_id):
                yield from branch.tree.child_ids()

    def branch(self, child_id: str) -> "Tree | None":
        """The tree of a child that is a supervisor and runs."""
        found = self._branch(child_id)
        return found.tree if found else None

    def state(self, child_id: str) -> ChildState:
        """Where the child stands by the rules."""
        return self._rules.state(child_id)

    @property
    def order(self) -> tuple[str, ...]:
        """The ids of the direct children, in the order in which they start."""
        return self._rules.start_order

    def workers(self) -> Iterator[Member]:
        """All processes that are ready, and that nobody has asked to end, at whatever depth."""
        for child_id in self._rules.start_order:
            if branch := self._branch(child_id):
                yield from branch.tree.workers()
            elif (member := self._current.get(child_id)) and member.is_running:
                yield member

    def report(self) -> dict[str, Any]:
        """The supervisor and all below it, as plain data."""
        flags, now = self._rules.flags, self._clock()
        return {
            "id": self.id,
            "type": "supervisor",
            "state": "draining" if self._is_closing else "running" if self.started.is_set() else "starting",
            "strategy": str(flags.strategy),
            "restarts": self._rules.restarts(now),
            "intensity": flags.intensity,
            "period": flags.period,
            "last_exit": None,
            "children": [self._report_of(child_id, now) for child_id in self._rules.start_order],
        }

    def _report_of(self, child_id: str, now: float) -> dict[str, Any]:
        spec, member = self._rules.spec(child_id), self._current.get(child_id)
        exit, exit_at = self._last_exits.get(child_id, (None, now))
        # Of one that ended as it was told to, how it did is of no interest.
        how = exit and (str(exit.reason) if exit.reason is ExitReason.SHUTDOWN and not exit.why else exit.how)
        last = {"last_exit": how, "last_exit_ago": round(now - exit_at, 1) if exit else None}
        if branch := self._branch(child_id):
            return branch.tree.report() | last
        restarts = self._rules.restarts_of(child_id, now)
        about = {"id": child_id, "type": str(spec.type), "state": self._shown_state(child_id), "restarts": restarts}
        if isinstance(spec, SupervisorSpec):
            flags = spec.flags
            return about | last | {
                "strategy": str(flags.strategy), "intensity": flags.intensity, "period": flags.period, "children": [],
            }  # fmt: skip
        if member is None or member.exit:
            return about | last
        return about | last | {
            "process": member.child.process, "pid": member.child.pid, "uptime": round(now - member.started_at, 1),
        } | member.child.report()  # fmt: skip

    def _shown_state(self, child_id: str) -> str:
        member = self._current.get(child_id)
        match self._rules.state(child_id):
            case ChildState.SUSPENDED:
                return "suspended"
            case ChildState.ENDED:
                return "ended"
            case ChildState.RESTARTING:
                return "restarting"
            case _:
                if member is None or not member.is_up:
                    return "starting"
                return "draining" if member.is_asked else "running" if member.exit is None else "restarting"

    # -- parts

    def _branch(self, child_id: str) -> "Branch | None":
        member = self._current.get(child_id)
        return member.child if member and isinstance(member.child, Branch) and not member.exit else None

    def _branches(self) -> "Iterable[Branch]":
        return [branch for child_id in self._rules.start_order if (branch := self._branch(child_id))]

    @asynccontextmanager
    async def _locked(self, *child_ids: str) -> AsyncIterator[None]:
        """Have these children to oneself. Several are taken in the order of their start, so that nobody waits in a
        circle."""
        async with AsyncExitStack() as locks:
            for child_id in child_ids:
                await locks.enter_async_context(self._locks.setdefault(child_id, asyncio.Lock()))
            yield

    @staticmethod
    async def _first_of(*tasks: asyncio.Task[Any], timeout: float | None) -> None:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)

    @staticmethod
    async def _abandon(*tasks: asyncio.Task[Any]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class Branch:
    """A supervisor below a supervisor: a tree in the same process, as a child.

    When it gives up it ends with the reason `shutdown`, as in OTP: a permanent one is started again by its parent, a
    transient or temporary one is not.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.process = tree.id
        self.pid = os.getpid()
        self.failure = ""
        self._stop, self._leave_now = asyncio.Event(), asyncio.Event()
        self._life = asyncio.create_task(tree.run(self._stop, self._leave_now))

    async def ready(self) -> bool:
        """Wait until all children are; `False` if one could not be started."""
        started = asyncio.create_task(self.tree.started.wait())
        await asyncio.wait({started, self._life}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if not self._life.done():
            return True
        await self.exited()
        return False

    async def exited(self) -> ChildExit:
        """Wait for its end."""
        await asyncio.wait({self._life})
        reason = ExitReason.SHUTDOWN
        asked = self._stop.is_set()
        if not self._life.cancelled() and (error := self._life.exception()):
            self.failure = str(error)
            if not isinstance(error, SupervisionError):
                reason = ExitReason.ABNORMAL
                log.error("the supervisor %s has failed", self.process, exc_info=error)
        return ChildExit(self.process, self.process, self.pid, None, None, reason, asked, self.failure)

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
        """It is told of by its tree."""
        return self.tree.report()


def _story(event: Member | _StartFailed) -> str:
    if isinstance(event, _StartFailed):
        return str(event.error)
    return event.child.failure if isinstance(event.child, Branch) else str(event.exit)
