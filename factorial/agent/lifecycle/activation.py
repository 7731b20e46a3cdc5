"""`Activation`: one stay of a run in one place, from where it is claimed to where it ends, is parked, backs off or is
released. It is the one lifecycle, in a worker and inline.

    take a turn -> an outcome -> the host carries it out -> another turn, or the end of the activation

A turn whose tools await something leads to `Park`. `_finish_turn` is its second half, when everything has arrived.
Called by `inline.py` and by `actors/durable_host.py`, each with itself as the host.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from factorial._core.boundary import Raised, attempt, ordinary
from factorial._core.conversation import answered
from factorial._core.json import dump_json, load_json
from factorial.agent.callbacks import Callback, call_back
from factorial.agent.completion import RunCompletion, TurnCompletion
from factorial.agent.lifecycle.calls import publish_late_result
from factorial.agent.lifecycle.decide import announced, outcome_of_failure, outcome_of_turn
from factorial.agent.lifecycle.definition import AgentDefinition
from factorial.agent.lifecycle.failure import describe
from factorial.agent.lifecycle.guard import Guard, StepKind
from factorial.agent.lifecycle.host import Host, Recorded
from factorial.agent.lifecycle.outcome import Backoff, Cancel, Complete, Continue, Fail, Outcome, Park, Release
from factorial.agent.lifecycle.progress import Progress
from factorial.agent.lifecycle.run_state import RunState
from factorial.agent.lifecycle.step import Step
from factorial.agent.lifecycle.steps import Frame, Steps
from factorial.agent.lifecycle.sub_tasks import add_ends, answer_of
from factorial.agent.lifecycle.waiting import answer_calls, read_arrivals
from factorial.config import AgentWorkerConfig
from factorial.context import ContextType, ExecutionContext, entered, execution_context, note_attempt, scope
from factorial.errors import (
    ConfigError,
    ContextError,
    FactorialError,
    FatalAgentError,
    RetryableError,
    TurnTimeoutError,
)
from factorial.events import BaseEvent
from factorial.telemetry.task_log import task_fields

__all__ = ["RUN_START", "Activation", "PickedUp"]

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")

RUN_START = "run_start"
"""The key of the step in which `on_run_start` is called."""


@dataclass(frozen=True, slots=True)
class PickedUp:
    """How far the run was when the activation began."""

    awaits: Mapping[str, bytes] = field(default_factory=dict)
    """What the run was parked for, with the results; empty if it was not parked."""
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When the task was claimed for the first time."""
    is_new: bool = True
    """No turn of the run is finished yet."""
    deferred_for: float | None = None
    """Seconds since the task was deferred first; None if its host cannot defer it."""


class Activation(Generic[ContextType]):
    """One run on one host. `policy` says how failed turns are retried."""

    def __init__(
        self,
        agent: AgentDefinition[ContextType],
        context: ContextType,
        execution_ctx: ExecutionContext,
        host: Host,
        policy: AgentWorkerConfig,
        picked_up: PickedUp | None = None,
    ) -> None:
        picked_up = picked_up or PickedUp()
        _check_guards(agent)
        self.state: RunState[ContextType] = RunState(
            agent, context, execution_ctx, host, picked_up.started_at, picked_up.deferred_for, context.turn
        )
        # An earlier holder may have died, or stopped, in the middle of an answer.
        self.state.has_loose_pieces = execution_ctx.pickups > 1 and not picked_up.awaits
        self._policy = policy
        self._awaits = picked_up.awaits
        self._is_new = picked_up.is_new
        self._steps = Steps(self.state, "")
        self._context = copy_context()
        """In which all of the agent's own code runs, apart from its steps."""

    async def take_turns(self) -> None:
        """Take turns until the activation is over."""
        try:
            with entered(self.state.execution_ctx, Frame(self._steps)):
                await self.notify_end(await self._until_over())
        finally:
            self._steps.detach()

    def _begin_steps(self, place: str) -> None:
        """The steps that are taken from now on are those of another turn, attempt or half of a turn."""
        self._steps.detach()
        self._steps = Steps(self.state, place)
        scope.set(Frame(self._steps))

    async def _until_over(self) -> Outcome | None:
        execution_ctx = self.state.execution_ctx
        while True:
            wanted = await self._next_outcome()
            self._steps.close()
            try:
                done = await self._settle(wanted)
            except ContextError as unfit:
                wanted = self._after_failure(unfit)
                done = await self._settle(wanted)
            if not isinstance(done, Continue):
                return done
            self._awaits = done.awaits
            if isinstance(wanted, Backoff):  # the host has waited
                execution_ctx.retries += 1
            else:
                execution_ctx.retries, self._is_new = 0, False

    async def _settle(self, outcome: Outcome) -> Outcome | None:
        state = self.state
        return await state.host.settle(outcome, state.context, announced(state, outcome, self._policy))

    async def notify_end(self, outcome: Outcome | None) -> None:
        """Call back if the run has ended here, by `outcome`. Raises nothing: no callback can change that any more."""
        state = self.state
        if not isinstance(outcome, Release | Park | Backoff | None):  # no callback, and nobody else, sees open calls
            state.context.messages = answered(state.context.messages)
        with entered(state.execution_ctx, None):
            self._begin_steps("end:")
            match outcome:
                case Cancel():
                    await self._call_back_finally(state.agent.on_run_cancelled)
                case Complete() | Fail():
                    error = outcome.error if isinstance(outcome, Fail) else None
                    reason = outcome.finish_reason if isinstance(outcome, Complete) else None
                    completion = RunCompletion(
                        state.context.output, state.context, state.started_at, datetime.now(UTC), error, reason
                    )
                    await self._call_back_finally(state.agent.on_run_end, completion)
            self._steps.detach()

    async def _call_back(self, callback: Callback, *arguments: Any) -> None:
        """Call back within the time that a turn may take."""
        if callback is not None:
            async with asyncio.timeout(self._policy.turn_timeout):
                everything = (self.state.context, self.state.execution_ctx, *arguments)
                await call_back(callback, *everything, context=self._agents_context())

    async def _call_back_finally(self, callback: Callback, *arguments: Any) -> None:
        """Call back, and log what it raises."""
        try:
            await self._call_back(callback, *arguments)
        except (FatalAgentError, RetryableError, TimeoutError) as error:
            about = (self.state.execution_ctx.task_id, self.state.execution_ctx.agent_name, describe(error))
            _logger.warning("task %s of %s: a callback failed after the run's end: %s", *about, extra=task_fields())

    async def _next_outcome(self) -> Outcome:
        try:
            if self._awaits:
                return await self._finish_turn()
            completion, ended = await self._turn()
            outcome = outcome_of_turn(self.state, completion)
            await self._expect_own_calls(outcome)
            await self.state.execution_ctx.events.publish_event(ended)  # with the commit, which follows at once
            return outcome
        except asyncio.CancelledError:  # not by the agent's code, which runs in asyncio tasks of its own
            if interruption := self.state.host.interruption():
                return interruption
            raise
        except Exception as error:  # whatever the agent's code raises fails the attempt, and affects nothing else
            return self._after_failure(error)

    async def _turn(self) -> tuple[TurnCompletion[ContextType], BaseEvent]:
        state = self.state
        state.turn = state.context.turn
        self._begin_steps("")
        if self._is_new and state.agent.on_run_start is not None:
            await self._attempt("on_run_start", self._take_run_start)
        state.execution_ctx.iterations += 1
        note_attempt(state.context, state.execution_ctx.retries)
        await self._call_back(state.agent.on_turn_start)
        progress = Progress("run_turn", state.execution_ctx, state.context)
        completion = await progress.follow(self._turn_in_time, lambda _: None)
        if not isinstance(completion, TurnCompletion):
            raise FatalAgentError(
                f"{type(state.agent).__name__}.run_turn returned {type(completion).__name__}: return a TurnCompletion"
            )
        state.context = completion.context
        state.context.turn = max(state.context.turn, state.turn + 1)
        await self._call_back(state.agent.on_turn_end, completion)
        return completion, progress.event("completed")

    async def _attempt(self, what: str, call: Callable[[], Awaitable[_T]]) -> _T:
        """What awaiting the agent's own code returns. Raises an `Exception` whatever it raises.

        All of it runs in one `contextvars.Context`: a callback may set a variable for the turn that follows.
        """
        result = await attempt(call, self._agents_context())
        if isinstance(result, Raised):
            raise ordinary(what, result.error)
        return result

    def _agents_context(self) -> Context:
        self._context.run(execution_context.set, self.state.execution_ctx)
        self._context.run(scope.set, Frame(self._steps))
        return self._context

    async def _take_run_start(self) -> None:
        """Call `on_run_start` as a step: what it changes is kept for all attempts at the first turn."""
        callback, context = self.state.agent.on_run_start, self.state.context
        count, before = len(context.messages), dump_json(context.messages)

        async def call() -> None:
            async with asyncio.timeout(self._policy.turn_timeout):
                await call_back(callback, context, ExecutionContext.current())

        def record(_: None) -> Recorded:
            edited = dump_json(context.messages) != before
            return Recorded(dump_json({"before": count, "messages": context.messages} if edited else None))

        def recall(recorded: Recorded) -> None:
            if change := load_json(recorded.result):
                context.messages[: change["before"]] = change["messages"]

        step = Step(
            name=RUN_START,
            kind=StepKind.CALLBACK,
            about="on_run_start",
            call=call,
            record=record,
            recall=recall,
            urgent=lambda _: False,
        )
        await self._steps.take(step, context)

    async def _expect_own_calls(self, outcome: Outcome) -> None:
        """Have the host expect the results that the agent's own `run_turn` awaits. Those of deferred tools have been
        expected since the calls began."""
        for call in outcome.calls if isinstance(outcome, Park) else ():
            if call.is_own and call.children is None:  # it may be a deferred call, which is expected already
                await self.state.host.expect(f"tool:{call.tool_call_id}", "run_turn", call.tool_call_id)

    async def _turn_in_time(self) -> TurnCompletion[ContextType]:
        try:
            async with asyncio.timeout(self._policy.turn_timeout) as limit:
                return await self._attempt("run_turn", lambda: self.state.agent.run_turn(self.state.context))
        except TimeoutError as late:
            if not limit.expired():
                raise
            raise TurnTimeoutError(
                f"turn {self.state.context.turn} took longer than turn_timeout={self._policy.turn_timeout:g} seconds"
            ) from late

    async def _finish_turn(self) -> Outcome:
        """The second half of a turn that was parked: its calls are answered, in their order."""
        state = self.state
        state.turn = state.context.turn - 1
        self._begin_steps("results:")
        arrivals = read_arrivals(self._awaits)
        awaited = [arrival for arrival in arrivals if arrival.was_awaited]
        shown = [pair for arrival in awaited for pair in arrival.shown]
        await self._call_back(state.agent.on_pending_tool_results, shown)
        calls = {call["id"]: call for message in state.context.messages for call in message.get("tool_calls") or ()}
        for arrival in awaited:
            call = calls.get(arrival.call.tool_call_id)
            if arrival.result is not None and call is not None:
                await publish_late_result(state, call, arrival.result)
        answers = [await answer_of(state, arrival) for arrival in arrivals if not arrival.has_no_call]
        answer_calls(state.context.messages, answers)
        for arrival in arrivals:
            if arrival.has_no_call:
                await add_ends(state, arrival)
        return Continue()

    def _after_failure(self, error: BaseException) -> Outcome:
        state = self.state
        raised = error.__cause__ if isinstance(error, RetryableError) and error.__cause__ else error
        if not isinstance(raised, FactorialError):  # the user's code: where it failed is what they need to know
            about = (state.execution_ctx.task_id, state.execution_ctx.agent_name, state.turn)
            _logger.warning("task %s of %s: turn %d failed", *about, exc_info=raised, extra=task_fields())
        return outcome_of_failure(state, error, self._policy)


def _check_guards(agent: AgentDefinition[Any]) -> None:
    given: object = agent.guards
    if not isinstance(given, list | tuple) or not all(isinstance(guard, Guard) for guard in given):
        raise ConfigError(f"agent {agent.name!r}: guards={given!r}: give a list of objects that extend Guard")
