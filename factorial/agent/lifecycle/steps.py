"""`Steps.take` takes a step of a turn:

    recall -> guards before -> events around the call -> guards after -> record

A turn that is taken again (after a crash, a retry or a release) recalls its finished steps from the journal and does
not repeat them. Model calls and tool calls that are made from within a step belong to that step. What the user's code
makes a step by `execution_ctx.step` is recorded for itself, under the key of the step that contains it.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from heapq import heappop, heappush
from typing import Any, TypeVar

from factorial._core.boundary import is_ending
from factorial.agent.lifecycle.children import spawn_children
from factorial.agent.lifecycle.codec import readable
from factorial.agent.lifecycle.guard import Guard, StepCall, StepKind
from factorial.agent.lifecycle.host import Recorded
from factorial.agent.lifecycle.progress import Progress, metadata
from factorial.agent.lifecycle.reports import Reports, report_data
from factorial.agent.lifecycle.run_state import RunState
from factorial.agent.lifecycle.step import Step
from factorial.agent.lifecycle.user_step import called, called_in_thread, result_of, user_step
from factorial.context import AgentContext, Batch, ExecutionContext, entered, scope
from factorial.errors import ConfigError, FactorialError, FatalAgentError
from factorial.events import AgentEvent, BaseEvent, EventType

__all__ = ["Frame", "Steps", "current_frame"]

_T = TypeVar("_T")


class Steps:
    """The steps of one turn, or of what comes before the first one or after a parked one: its `place`."""

    def __init__(self, state: RunState[Any], place: str) -> None:
        self.place = place
        self.turn: int = state.turn
        self._state: RunState[Any] | None = state
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._counts: dict[str, int] = {}
        self._returned: dict[str, list[int]] = {}
        """For each name, the numbers of failed steps, as a heap."""
        self._within_steps: dict[str, Recorded] = {}
        """What was recorded within the user's steps: these may fail, and be taken again in this turn."""
        self._reports = Reports(self.loop)
        self._open_calls = 0
        self._is_closed = False

    @property
    def state(self) -> RunState[Any]:
        """The run. Raises `FactorialError` if its activation is over, or takes other steps now."""
        if self._state is None:
            raise FactorialError("the step is too late: its turn is over")
        return self._state

    async def take(self, step: Step[_T], agent_ctx: AgentContext) -> _T:
        """The result of `step`: recalled if it was recorded before, else of the call, which is recorded."""
        with self._named(step.name) as key:
            return await self._take(step, key, agent_ctx)

    async def _take(self, step: Step[_T], key: str, agent_ctx: AgentContext) -> _T:
        host = self.state.host
        context = self.state.context if step.keeps_context else None
        # Tool calls run side by side: what is restored with one must not undo what another one is changing.
        if recorded := self._within_steps.get(key) or host.recall(
            key, context, with_siblings=step.kind is StepKind.TOOL_ACTION
        ):
            with readable(f"what is recorded of the step {key!r}"):
                return step.recall(recorded)
        around = current_frame()
        call = StepCall(key, step.kind, step.about, agent_ctx, self._context_of(step, key))
        with entered(call.execution_ctx, Frame(self, key, step.kind)):
            result = await self._guarded(step, call)
        recorded = replace(step.record(result), entries=call.entries) if call.entries else step.record(result)
        if recorded.altered:
            result = step.recall(recorded)
        self._check_open(key)
        urgent = step.urgent(result)
        await host.record(key, recorded, context, urgent=urgent)
        if around is not None and around.kind is StepKind.STEP:
            self._within_steps[key] = recorded
        if self.state.deferred_for:
            self.state.deferred_for = 0.0
        if urgent and step.kind is StepKind.COMPLETION and "/" not in key:
            await host.boundary()
        return result

    async def _guarded(self, step: Step[_T], call: StepCall) -> _T:
        guards = [*step.guards, *self.state.agent.guards]
        entered_by: list[Guard] = []
        try:
            for guard in guards:
                entered_by.append(guard)
                await guard.before(call)
                if call.has_result:
                    self._check_type(step, call.result)
                    break
            else:
                call.result = await self._with_events(step, call)
        except BaseException as error:
            call.error = error
            raise
        finally:
            await _leave(entered_by, call)
        result: _T = call.result
        return result

    async def _with_events(self, step: Step[_T], call: StepCall) -> _T:
        if step.ending is None:
            return await self._checked(step, call.key)
        progress = Progress(step.kind, call.execution_ctx, call.agent_ctx, args=step.args, kwargs=step.kwargs)
        progress.shown = step.shown
        return await progress.follow(lambda: self._checked(step, call.key), step.ending)

    async def _checked(self, step: Step[_T], key: str) -> _T:
        try:
            value: object = await step.call()
        except BaseException as error:
            if not is_ending(error):
                await self._reports.published(key)
            raise
        await self._reports.published(key)
        self._check_type(step, value)
        return value  # type: ignore[return-value]  # a step without `returns` returns what its own call does

    def _check_type(self, step: Step[Any], value: object) -> None:
        if step.returns is not None and not isinstance(value, step.returns):
            agent = type(self.state.agent).__name__
            raise FatalAgentError(
                f"{agent}.{step.kind} returned {type(value).__name__}: return a {step.returns.__name__}"
            )

    def _context_of(self, step: Step[_T], key: str) -> ExecutionContext:
        """The execution context as the called code sees it."""
        around = ExecutionContext.get() or self.state.execution_ctx
        return replace(
            around,
            tool_call_id=step.tool_call_id or around.tool_call_id,
            idempotency_key=f"{around.task_id}:{self.state.turn}:{key}",
        )

    @contextmanager
    def _named(self, name: str) -> Iterator[str]:
        """The name of a step in the journal: the same when the turn is taken again.

        A step that fails gives its number back: the next call of the name is another attempt at the same step, with the
        same idempotency key, and the steps within it are the same, too.
        """
        frame = current_frame()
        within = f"{frame.key}/" if frame is not None and frame.key else self.place
        number = self.count(within + name)
        key = f"{within}{name}" if number == 1 else f"{within}#{number}:{name}"
        try:
            yield key
        except BaseException:
            heappush(self._returned.setdefault(within + name, []), number)
            for counted in [each for each in self._counts if each.startswith(key + "/")]:
                del self._counts[counted]
                self._returned.pop(counted, None)
            raise

    def count(self, name: str) -> int:
        """The number of this call of `name` in this turn, from 1: the lowest that no other call has."""
        if returned := self._returned.get(name):
            return heappop(returned)
        self._counts[name] = self._counts.get(name, 0) + 1
        return self._counts[name]

    def report(self, key: str, event: BaseEvent) -> None:
        """Publish what the step `key` reports of its progress. Ignored if the turn is over."""
        if not self._is_closed and self._state is not None and self._reports.accepts(key):
            self._reports.publish(key, partial(self._state.host.publish_event, event))

    def close(self) -> None:
        """The turn has an outcome: what still runs of it, in some thread, records nothing any more."""
        self._is_closed = True

    def detach(self) -> None:
        """Nothing is done within these steps any more. The event loop keeps timers that were cancelled, with all that
        their contexts hold: it shall not be the conversation."""
        self._is_closed, self._state = True, None

    def _check_open(self, key: str) -> None:
        if self._is_closed:
            raise FactorialError(f"step {key!r} is too late: its turn is over")

    def expect_calls(self, count: int) -> None:
        """So many tool calls run side by side now, and the end of the turn follows the last of them."""
        self._open_calls = count

    @contextmanager
    def open_call(self) -> Iterator[Callable[[], bool]]:
        """One of these calls. Gives a function that ends it, and says whether it was the last one that was open."""
        is_open = True

        def end() -> bool:
            nonlocal is_open
            self._open_calls -= is_open
            is_open = False
            return self._open_calls == 0

        try:
            yield end
        finally:
            end()


@dataclass(frozen=True, slots=True)
class Frame:
    """The scope of code that a run executes: in which step, or in none."""

    steps: Steps
    key: str = ""
    kind: StepKind | None = None

    @property
    def turn(self) -> int:
        """The turn that is being taken."""
        return self.steps.turn

    @property
    def state(self) -> RunState[Any]:
        """The run."""
        return self.steps.state

    @property
    def is_in_step(self) -> bool:
        """Whether model calls and tool calls that are made here belong to a step already."""
        return self.kind not in (None, StepKind.CALLBACK)

    async def step(
        self, name: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Take a step of the user's own."""
        step = user_step(name, function, lambda: called(function, args, kwargs))
        return result_of(name, function, await self.steps.take(step, self.state.context))

    def step_sync(self, name: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The same in the thread of a plain tool, which calls the function."""

        async def take(call: Callable[[], Awaitable[Any]]) -> bytes:
            return await self.steps.take(user_step(name, function, call), self.state.context)

        if inspect.iscoroutinefunction(function):
            raise ConfigError(f"step {name!r}: step_sync calls plain functions: use await execution_ctx.step(...)")
        recorded = called_in_thread(self.steps.loop, take, lambda: function(*args, **kwargs))
        return result_of(name, function, recorded)

    def progress(self, fraction: float, text: str) -> None:
        """Publish the event `tool_progress`. Called in any thread."""
        context, steps = ExecutionContext.current(), self.steps
        data = report_data(fraction, text) | {"tool_call_id": context.tool_call_id}
        about = metadata(context, self.turn)
        event = AgentEvent(EventType.TOOL_PROGRESS, turn=self.turn, metadata=about, data=data)
        if _running_loop() is steps.loop:
            steps.report(self.key, event)
        else:
            with suppress(RuntimeError):  # the loop is closed: this thread has outlived its run
                steps.loop.call_soon_threadsafe(steps.report, self.key, event)

    async def spawn(self, agent: Any, payloads: Sequence[AgentContext], *, as_batch: bool) -> Batch:
        """Spawn children of this run. Their ids follow from the step that spawns them, or from the place in the run."""
        context = ExecutionContext.current()
        place = self.steps.place or "run_turn"
        origin = context.idempotency_key or f"{context.task_id}:{self.turn}:{place}"
        return await spawn_children(self.state, origin, self.steps.count, agent, payloads, as_batch=as_batch)


async def _leave(guards: Sequence[Guard], call: StepCall) -> None:
    """Each guard is asked, the last one first, whatever another one raises. Raises the first error."""
    raised: BaseException | None = None
    for guard in reversed(guards):
        try:
            await guard.after(call)
        except BaseException as error:  # the other guards have something to give back, too
            raised, call.error = raised or error, call.error or error
    if raised is not None:
        raise raised


def current_frame() -> Frame | None:
    """The frame of the present code; None outside of a run."""
    found = scope.get()
    return found if isinstance(found, Frame) else None


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
