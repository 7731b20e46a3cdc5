"""A supervisor at work: carries out on real children what `strategy` decides.

The end of a child is told to `on_exit` at once, whatever else is going on. Restarts of children that do not concern
each other run side by side; a group restart is carried out before the next exit is looked at, as in OTP. A request to
stop interrupts both.

A child that is a supervisor itself is a `Branch`: a tree in the same process. Whoever starts or terminates a child
holds its lock, so that a restart and an operator's wish (`changes.py`) never cross; children that are restarted as a
group have one lock.
"""

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
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
    SupervisorFlags,
    SupervisorSpec,
)
from factorial.supervisor.strategy import (
    ChildState,
    Finish,
    GiveUp,
    LeaveEnded,
    RestartChildren,
    Supervision,
)

__all__ = ["Branch", "Child", "Member", "Place", "Tree"]

log = logging.getLogger(__name__)

_ON_EXIT_SECONDS = 2.0
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
class Place:
    """A child, and the supervisor that it belongs to."""

    tree: "Tree"
    child_id: str

    @property
    def spec(self) -> Spec:
        """The child's specification."""
        return self.tree.rules.spec(self.child_id)

    @property
    def state(self) -> ChildState:
        """Where the child stands by the rules."""
        return self.tree.rules.state(self.child_id)


@dataclass(frozen=True, slots=True)
class _Failed:
    """A start that has failed. `member` is the child's present incarnation at that time: dead, or none."""

    spec: Spec
    member: Member | None
    failure: str


class Tree:
    """A supervisor and its children.

    `launch` starts the process of a child and returns without waiting for it; `on_exit` is called for every
    incarnation of a process that has ended, also for those that were told to; `on_change`, when something is not as it
    was.
    """

    def __init__(
        self,
        spec: SupervisorSpec,
        *,
        launch: Launch,
        on_exit: OnExit,
        on_change: Callable[[], None] = lambda: None,
        resting: set[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = spec.id
        self.started = asyncio.Event()
        """All children are ready for the first time."""
        self.closing = asyncio.Event()
        """It has begun to end."""
        self.resting = set() if resting is None else resting
        """The ids of all children that an operator has suspended, at whatever depth: they stay so when the supervisor
        that they belong to is started anew."""
        self.rules = Supervision(spec.flags, spec.children)
        for child_id in self.resting.intersection(self.rules.start_order):
            self.rules.suspend(child_id)
        self.current: dict[str, Member] = {}
        """The present incarnation of each child that has one, by the child's id."""
        self.alive: set[Member] = set()
        """All incarnations: also successors that are not up yet, and predecessors that drain."""
        self.last_exits: dict[str, tuple[ChildExit, float]] = {}
        """How the latest incarnation of a child ended, and when."""
        self.now = clock
        self._launch = launch
        self._on_exit = on_exit
        self._on_change = on_change
        self._locks: dict[str, asyncio.Lock] = {}
        self._events: asyncio.Queue[Member | _Failed | Finish | BaseException] = asyncio.Queue()
        self._reactions: set[asyncio.Task[None]] = set()
        self._tellings: set[asyncio.Task[None]] = set()

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
            self.closing.set()
            try:
                await self._abandon(work, stopping, *self._reactions)
                await self._shut_down()
            finally:
                self._leave_now.cancel()
                self.kill()
        if not work.cancelled():
            work.result()

    async def _supervise(self) -> None:
        await self._start_all()
        self.started.set()
        self._on_change()
        log.info("%s is up, with %d children", self.id, len(self.current))
        while True:
            match await self._events.get():
                case BaseException() as error:
                    raise error
                case Finish():
                    log.info("%s: the significant children have ended: shutting down", self.id)
                    return
                case Member() | _Failed() as event if self._is_group:
                    await self._react(event)
                case Member() | _Failed() as event:
                    reaction = asyncio.create_task(self._react(event))
                    self._reactions.add(reaction)
                    reaction.add_done_callback(self._on_reacted)
                case other:
                    assert_never(other)

    def _on_reacted(self, reaction: asyncio.Task[None]) -> None:
        self._reactions.discard(reaction)
        if not reaction.cancelled() and (error := reaction.exception()):
            self._events.put_nowait(error)

    async def _start_all(self) -> None:
        if not self.rules.flags.start_together:
            for child_id in self.rules.start_order:
                await self._start_first(child_id)
            return
        try:
            async with asyncio.TaskGroup() as starting:
                for child_id in self.rules.start_order:
                    starting.create_task(self._start_first(child_id))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _start_first(self, child_id: str) -> None:
        async with self.locked(child_id):
            if child_id in self.rules and self.rules.state(child_id) is ChildState.NOT_STARTED:
                await self.start(child_id)

    async def _react(self, event: "Member | _Failed") -> None:
        """Do what the rules say about the end of a child that nobody had asked to end, or about its failed start.

        The rules are asked when the child is ours alone: meanwhile another incarnation may have taken its place, or
        somebody has taken the child out of service.
        """
        child_id = event.spec.id
        async with self.locked(child_id):
            meant = event if isinstance(event, Member) else event.member
            if child_id not in self.rules or self.current.get(child_id) is not meant:
                await self._restart(RestartChildren((), self._owed()))
                return
            if isinstance(event, Member) and event.exit:
                decision = self.rules.ended(child_id, event.exit.reason, self.now())
            elif self.rules.state(child_id) is ChildState.RESTARTING:
                decision = self.rules.start_failed(child_id, self.now())
            else:
                return
            match decision:
                case LeaveEnded():
                    self._on_change()
                case Finish():
                    self._events.put_nowait(decision)
                case GiveUp():
                    raise _GaveUp(self.id, self.rules.flags, decision.restarts, event)
                case RestartChildren():
                    await self._restart(decision)
                case _:
                    assert_never(decision)

    async def _restart(self, plan: RestartChildren) -> None:
        for child_id in plan.terminate:
            await self.terminate(self.current.pop(child_id))
        if plan.delay:
            log.info("%s: waiting %.1f s before the next start", plan.start[0], plan.delay)
            await asyncio.sleep(plan.delay)
        for child_id in plan.start:
            if child_id in self.resting:  # somebody waits to take it out of service
                self.rules.suspend(child_id)
                continue
            try:
                await self.start(child_id)
            except SupervisionError as error:
                log.error("%s", error)
                self._events.put_nowait(_Failed(self.rules.spec(child_id), self.current.get(child_id), str(error)))
                return

    def _owed(self) -> tuple[str, ...]:
        """Whom a group restart has terminated and not started again, because somebody else's start has failed."""
        if not self._is_group:
            return ()
        return tuple(
            child_id
            for child_id in self.order
            if self.rules.state(child_id) is ChildState.RESTARTING and child_id not in self.current
        )

    async def _shut_down(self) -> None:
        spare = [member for member in self.alive if self.current.get(member.spec.id) is not member]
        leaving = [asyncio.create_task(self.terminate(member)) for member in spare]
        for child_ids in self.rules.shutdown_order:
            members = [self.current[child_id] for child_id in child_ids if child_id in self.current]
            await asyncio.gather(*(self.terminate(member) for member in members))
        await asyncio.gather(*leaving)
        while self.alive:  # what an operator has begun meanwhile
            await asyncio.gather(*(self.terminate(member) for member in self.alive))
        if self._tellings:
            await asyncio.wait(self._tellings, timeout=_ON_EXIT_SECONDS)

    def kill(self) -> None:
        """End all processes of this tree at once."""
        for member in list(self.alive):
            member.child.kill()

    # -- one incarnation

    async def start(self, child_id: str) -> None:
        """Start a child and wait until it is ready. Raises `SupervisionError` if it does not get there."""
        member = self.current[child_id] = self.bear(self.rules.spec(child_id))
        await self.until_up(member)
        self.rules.started(child_id)

    def bear(self, spec: Spec) -> Member:
        """Begin a new incarnation of a child. Raises `SupervisionError` if that is impossible."""
        if self.closing.is_set():
            raise SupervisionError(f"child {spec.id!r} is not started: the supervisor is shutting down")
        member = Member(spec, self._launch_any(spec), self.now())
        self.alive.add(member)
        member.gone = asyncio.create_task(self._watch(member))
        self._on_change()
        return member

    def _launch_any(self, spec: Spec) -> Child:
        if isinstance(spec, ChildSpec):
            return self._launch(spec)
        below = Tree(
            spec,
            launch=self._launch,
            on_exit=self._on_exit,
            on_change=self._on_change,
            resting=self.resting,
            clock=self.now,
        )
        return Branch(below)

    async def until_up(self, member: Member) -> None:
        """Wait until the new incarnation is ready. Raises `SupervisionError` if it does not get there."""
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
        if not is_ready or member.exit or member.is_asked:
            await asyncio.shield(member.gone)
            why = "" if isinstance(child, Branch) and child.failure else f"child {spec.id!r} could not be started: "
            raise SupervisionError(f"{why}{child.failure or member.exit}")
        member.is_up = True
        self._on_change()
        if isinstance(spec, ChildSpec):
            log.info("%s (pid %d) is ready", child.process, child.pid)

    async def _watch(self, member: Member) -> None:
        exit = member.exit = await member.child.exited()
        self.alive.discard(member)
        self._on_change()
        self.last_exits[member.spec.id] = (exit, self.now())
        if isinstance(member.spec, ChildSpec):
            level = logging.WARNING if exit.reason is ExitReason.ABNORMAL else logging.INFO
            log.log(level, "%s: %s", exit, exit.reason)
            telling = asyncio.create_task(self._tell(exit))
            self._tellings.add(telling)
            telling.add_done_callback(self._tellings.discard)
        elif member.child.failure:
            log.error("%s", member.child.failure)
        if member.is_up and not member.is_asked:
            self._events.put_nowait(member)

    async def _tell(self, exit: ChildExit) -> None:
        try:
            await self._on_exit(exit)
        except Exception:  # whatever happens to the one who is told, supervision goes on
            log.exception("what had to be done about the end of %s has failed", exit.process)

    async def terminate(self, member: Member) -> None:
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

    # -- what there is

    @property
    def order(self) -> tuple[str, ...]:
        """The ids of the direct children, in the order in which they start."""
        return self.rules.start_order

    @property
    def spec(self) -> SupervisorSpec:
        """What the tree is at present, scaled and reloaded as it may have been."""
        children: list[Spec] = []
        for child_id in self.order:
            child, below = self.rules.spec(child_id), self.branch(child_id)
            if below and isinstance(child, SupervisorSpec):
                child = replace(child, children=below.spec.children)
            children.append(child)
        return SupervisorSpec(id=self.id, flags=self.rules.flags, children=tuple(children))

    def branch(self, child_id: str) -> "Tree | None":
        """The tree of a child that is a supervisor and runs."""
        member = self.current.get(child_id)
        return member.child.tree if member and isinstance(member.child, Branch) and not member.exit else None

    def places(self) -> "Iterator[Place]":
        """All children, at whatever depth, each after the supervisor that it belongs to."""
        for child_id in self.order:
            yield Place(self, child_id)
            if below := self.branch(child_id):
                yield from below.places()

    def workers(self) -> Iterator[Member]:
        """All processes that are ready, and that nobody has asked to end, at whatever depth."""
        for place in self.places():
            member = place.tree.current.get(place.child_id)
            if member and member.is_running and isinstance(member.spec, ChildSpec):
                yield member

    # -- parts

    @property
    def _is_group(self) -> bool:
        return self.rules.flags.strategy in (Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE)

    @asynccontextmanager
    async def locked(self, child_id: str) -> AsyncIterator[None]:
        """Have the child to oneself: nothing else starts or terminates it. Children of a group are had together."""
        while True:
            key = self._lock_key(child_id)
            async with self._locks.setdefault(key, asyncio.Lock()):
                if key == self._lock_key(child_id):  # the strategy is still the same
                    yield
                    return

    def _lock_key(self, child_id: str) -> str:
        return "" if self._is_group else child_id

    async def reconfigure(self, flags: SupervisorFlags) -> None:
        """Treat the children by other flags, once nobody is at work on one of them."""
        async with AsyncExitStack() as locks:
            for key in sorted({"", *self._locks}):
                await locks.enter_async_context(self._locks.setdefault(key, asyncio.Lock()))
            self.rules.flags = flags

    def changed(self) -> None:
        """Something is not as it was."""
        self._on_change()

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
            why = error.summary if isinstance(error, _GaveUp) else self.failure
            if not isinstance(error, SupervisionError):
                reason = ExitReason.ABNORMAL
                log.error("the supervisor %s has failed", self.process, exc_info=error)
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


class _GaveUp(SupervisionError):
    """There were too many restarts. `summary` says the same in a few words, the latest cause first."""

    def __init__(self, supervisor: str, flags: SupervisorFlags, restarts: int, last: Member | _Failed) -> None:
        if isinstance(last, _Failed):
            story = cause = last.failure
        else:
            story = last.child.failure if isinstance(last.child, Branch) else str(last.exit)
            cause = last.exit.how if last.exit else ""
        self.summary = f"gave up: {cause.removeprefix('gave up: ')}; {restarts} restarts within {flags.period:g} s"
        super().__init__(
            f"supervisor {supervisor!r} has given up: {restarts} restarts within {flags.period:g} s, where intensity "
            f"allows {flags.intensity}; the last: {story}"
        )
