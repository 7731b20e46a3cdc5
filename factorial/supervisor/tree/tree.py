"""A supervisor at work: carries out on real children what `rules.strategy` decides.

The end of a child is reported to `on_exit` at once, whatever else happens at the time. Restarts of children that do
not depend on each other run side by side. A group restart ends before the next exit is handled, as in OTP. A request to
stop interrupts both.

A task that starts or terminates a child holds the lock of that child, so a restart and a change by an operator
(`changes.py`) never overlap. Children that are restarted as a group share one lock.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import assert_never

from factorial.errors import SupervisionError
from factorial.supervisor.rules.spec import ChildSpec, Spec, Strategy, SupervisorFlags, SupervisorSpec
from factorial.supervisor.rules.strategy import ChildState, Finish, GiveUp, LeaveEnded, RestartChildren, Supervision
from factorial.supervisor.tree.branch import Branch, GaveUp
from factorial.supervisor.tree.incarnation import Child, Incarnation, Incarnations, OnExit

__all__ = ["ChildRef", "Tree"]

_logger = logging.getLogger(__name__)

_Launch = Callable[[ChildSpec], Child]


@dataclass(frozen=True, slots=True)
class ChildRef:
    """A child: the tree of its supervisor, and its id there."""

    tree: "Tree"
    child_id: str

    @property
    def spec(self) -> Spec:
        """The child's specification."""
        return self.tree.rules.spec(self.child_id)

    @property
    def state(self) -> ChildState:
        """The child's state by the rules."""
        return self.tree.rules.state(self.child_id)


@dataclass(frozen=True, slots=True)
class _FailedStart:
    """A start that has failed. `current`: the child's incarnation at that time, which has ended, or None."""

    spec: Spec
    current: Incarnation | None
    failure: str


class Tree:
    """A supervisor and its children.

    `launch` starts the process of a child and returns without waiting for it. `on_exit` is called for each process
    that has ended, also for those that were asked to. `on_change` is called whenever `report.describe` would return
    something else.
    """

    def __init__(
        self,
        spec: SupervisorSpec,
        *,
        launch: _Launch,
        on_exit: OnExit,
        on_change: Callable[[], None] = lambda: None,
        suspended: set[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id: str = spec.id
        self.started: asyncio.Event = asyncio.Event()
        """All children have been ready once."""
        self.closing: asyncio.Event = asyncio.Event()
        """The tree has begun to end."""
        self.suspended: set[str] = set() if suspended is None else suspended
        """The ids of all children that an operator has suspended, at any depth. They stay suspended when their
        supervisor is started again."""
        self.rules: Supervision = Supervision(spec.flags, spec.children)
        for child_id in self.suspended.intersection(self.rules.start_order):
            self.rules.suspend(child_id)
        self.current: dict[str, Incarnation] = {}
        """The present incarnation of each child that has one, by the child's id."""
        self.incarnations: Incarnations = Incarnations(
            on_exit=on_exit, on_change=on_change, on_lost=self._on_lost, clock=clock
        )
        self.changed = on_change
        """To be called when something about the tree has changed."""
        self.now = clock
        self._launch = launch
        self._on_exit = on_exit
        self._locks: dict[str, asyncio.Lock] = {}
        self._events: asyncio.Queue[Incarnation | _FailedStart | Finish | BaseException] = asyncio.Queue()
        self._reactions: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event, leave_now: asyncio.Event) -> None:
        """Start the children, in order, and supervise them until `stop`. `leave_now` shortens their time to stop.

        Raises `SupervisionError` if a child cannot be started, or if there were too many restarts. However it
        ends, no child is left.
        """
        self.incarnations.leave_now = leave_now
        ends = [asyncio.create_task(event.wait()) for event in (stop, leave_now)]
        work = asyncio.create_task(self._supervise())
        try:
            await asyncio.wait({work, *ends}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.closing.set()
            try:
                await _abandon(work, *ends, *self._reactions)
                await self.incarnations.terminate_all()
            finally:
                self.kill()
        if not work.cancelled():
            work.result()

    async def start(self, child_id: str) -> None:
        """Start a child and wait until it is ready. Raises `SupervisionError` if it ends first, or takes too long."""
        incarnation = self.current[child_id] = self.begin(self.rules.spec(child_id))
        await self.incarnations.until_ready(incarnation)
        self.rules.started(child_id)

    def begin(self, spec: Spec) -> Incarnation:
        """Begin a new incarnation of a child. Raises `SupervisionError` if that is impossible."""
        if self.closing.is_set():
            raise SupervisionError(f"child {spec.id!r} is not started: the supervisor is shutting down")
        return self.incarnations.add(spec, self._launch(spec) if isinstance(spec, ChildSpec) else self._below(spec))

    def kill(self) -> None:
        """End all processes of this tree at once."""
        self.incarnations.kill_all()

    @asynccontextmanager
    async def locked(self, child_id: str) -> AsyncIterator[None]:
        """Keep other tasks from starting or terminating the child. The children of a group are locked together."""
        while True:
            key = self._lock_key(child_id)
            async with self._locks.setdefault(key, asyncio.Lock()):
                if key == self._lock_key(child_id):  # the strategy is still the same
                    yield
                    return

    async def reconfigure(self, flags: SupervisorFlags) -> None:
        """Replace the flags, as soon as no other task starts or terminates a child."""
        async with AsyncExitStack() as locks:
            for key in sorted({"", *self._locks}):
                await locks.enter_async_context(self._locks.setdefault(key, asyncio.Lock()))
            self.rules.flags = flags

    @property
    def order(self) -> tuple[str, ...]:
        """The ids of the direct children, in the order in which they start."""
        return self.rules.start_order

    @property
    def spec(self) -> SupervisorSpec:
        """The specification of the tree as it is now, after scaling and reloading."""
        children: list[Spec] = []
        for child_id in self.order:
            child, below = self.rules.spec(child_id), self.branch(child_id)
            if below and isinstance(child, SupervisorSpec):
                child = replace(child, children=below.spec.children)
            children.append(child)
        return SupervisorSpec(id=self.id, flags=self.rules.flags, children=tuple(children))

    def branch(self, child_id: str) -> "Tree | None":
        """The tree of a child that is a supervisor and has not ended."""
        incarnation = self.current.get(child_id)
        if incarnation is None or incarnation.exit or not isinstance(incarnation.child, Branch):
            return None
        below: Tree = incarnation.child.tree
        return below

    def walk(self) -> Iterator[ChildRef]:
        """All children, at any depth, each after its supervisor."""
        for child_id in self.order:
            yield ChildRef(self, child_id)
            if below := self.branch(child_id):
                yield from below.walk()

    def processes(self) -> Iterator[Incarnation]:
        """All processes, at any depth, that are ready and were not asked to end."""
        for child in self.walk():
            incarnation = child.tree.current.get(child.child_id)
            if incarnation and incarnation.is_running and isinstance(incarnation.spec, ChildSpec):
                yield incarnation

    async def _supervise(self) -> None:
        await self._start_all()
        self.started.set()
        self.changed()
        _logger.info("%s is up, with %d children", self.id, len(self.current))
        while True:
            match await self._events.get():
                case BaseException() as error:
                    raise error
                case Finish():
                    _logger.info("%s: the significant children have ended: shutting down", self.id)
                    return
                case Incarnation() | _FailedStart() as event if self._is_group:
                    await self._react(event)
                case Incarnation() | _FailedStart() as event:
                    reaction = asyncio.create_task(self._react(event))
                    self._reactions.add(reaction)
                    reaction.add_done_callback(self._on_reacted)
                case other:
                    assert_never(other)

    def _on_lost(self, incarnation: Incarnation) -> None:
        self._events.put_nowait(incarnation)

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

    async def _react(self, event: Incarnation | _FailedStart) -> None:
        """Do what the rules say about a failed start, or about the end of a child that was not asked to end.

        The rules are asked only after the child is locked: another incarnation may have taken its place meanwhile, or
        an operator may have suspended it.
        """
        child_id = event.spec.id
        async with self.locked(child_id):
            expected = event if isinstance(event, Incarnation) else event.current
            if child_id not in self.rules or self.current.get(child_id) is not expected:
                await self._restart(RestartChildren((), self._not_restarted_yet()))
                return
            if isinstance(event, Incarnation) and event.exit:
                decision = self.rules.ended(child_id, event.exit.reason, self.now())
            elif self.rules.state(child_id) is ChildState.RESTARTING:
                decision = self.rules.start_failed(child_id, self.now())
            else:
                return
            match decision:
                case LeaveEnded():
                    self.changed()
                case Finish():
                    self._events.put_nowait(decision)
                case GiveUp():
                    raise _gave_up(self.id, self.rules.flags, decision.restarts, event)
                case RestartChildren():
                    await self._restart(decision)
                case _:
                    assert_never(decision)

    async def _restart(self, plan: RestartChildren) -> None:
        for child_id in plan.terminate:
            await self.incarnations.terminate(self.current.pop(child_id))
        if plan.delay:
            _logger.info("%s: waiting %.1f s before the next start", plan.start[0], plan.delay)
            await asyncio.sleep(plan.delay)
        for child_id in plan.start:
            if child_id in self.suspended:  # `suspend_child` waits for the lock
                self.rules.suspend(child_id)
                continue
            try:
                await self.start(child_id)
            except SupervisionError as error:
                _logger.error("%s", error)
                self._events.put_nowait(_FailedStart(self.rules.spec(child_id), self.current.get(child_id), str(error)))
                return

    def _not_restarted_yet(self) -> tuple[str, ...]:
        """The children that a group restart has terminated, and has not started because another start failed."""
        if not self._is_group:
            return ()
        return tuple(
            child_id
            for child_id in self.order
            if self.rules.state(child_id) is ChildState.RESTARTING and child_id not in self.current
        )

    def _below(self, spec: SupervisorSpec) -> "Branch[Tree]":
        return Branch(
            Tree(
                spec,
                launch=self._launch,
                on_exit=self._on_exit,
                on_change=self.changed,
                suspended=self.suspended,
                clock=self.now,
            )
        )

    @property
    def _is_group(self) -> bool:
        return self.rules.flags.strategy in (Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE)

    def _lock_key(self, child_id: str) -> str:
        return "" if self._is_group else child_id


def _gave_up(supervisor: str, flags: SupervisorFlags, restarts: int, event: Incarnation | _FailedStart) -> GaveUp:
    if isinstance(event, _FailedStart):
        last = cause = event.failure
    else:
        last = str(event.exit) if isinstance(event.spec, ChildSpec) else event.child.failure
        cause = event.exit.how if event.exit else ""
    return GaveUp(supervisor, flags, restarts, last=last, cause=cause)


async def _abandon(*tasks: asyncio.Task[None] | asyncio.Task[bool]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
