"""THE lifecycle of a run, the same in a worker and inline: turn by turn until it ends or its host takes it away.

    take a turn -> settle it with the host -> and again, as the host answers

A turn whose tools wait for something is settled as `Park`; `finish_turn` is its second half, when everything is there.
Called by `inline.py` and by `actors/execution.py`, each with itself as the host.
"""

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, assert_never

from factorial._core.json import dump_json, load_json
from factorial._core.text import listed
from factorial.agent.callbacks import Callback, call_back
from factorial.agent.completion import RunCompletion, TurnCompletion
from factorial.agent.lifecycle.failure import after_failure, describe, explain_failure, is_final
from factorial.agent.lifecycle.host import (
    RUN_START,
    Answer,
    Host,
    Left,
    Proceed,
    Recorded,
    Resumed,
    Retried,
    Settlement,
)
from factorial.agent.lifecycle.progress import Progress, metadata
from factorial.agent.lifecycle.snapshot import readable
from factorial.agent.lifecycle.step import Steps
from factorial.agent.lifecycle.turn import settled
from factorial.agent.lifecycle.waiting import answer_calls, park, read_results
from factorial.config import AgentWorkerConfig
from factorial.context import ContextType, ExecutionContext
from factorial.errors import (
    ContextError,
    FactorialError,
    FatalAgentError,
    MaxTurnsError,
    RetryableError,
    TurnTimeoutError,
)
from factorial.events import AgentEvent, BaseEvent, EventType, QueueEvent
from factorial.task import Backoff, Cancel, Complete, Continue, Fail
from factorial.telemetry.story import fields_here

if TYPE_CHECKING:
    from factorial.agent.agent import BaseAgent

__all__ = ["Run"]

logger = logging.getLogger(__name__)


class Run(Generic[ContextType]):
    """One activation of a run: from where it is taken up to where it is left."""

    def __init__(
        self,
        agent: "BaseAgent[ContextType]",
        context: ContextType,
        execution: ExecutionContext,
        host: Host,
        policy: AgentWorkerConfig,
        *,
        awaited: Mapping[str, bytes] | None = None,
        started_at: datetime | None = None,
    ) -> None:
        self.agent = agent
        self.context = context
        self.execution = execution
        self.host = host
        self.policy = policy
        self.turn = context.turn
        """The turn that is being taken, or was taken last."""
        self.steps = Steps(host, execution, RUN_START)
        self.awaited: Mapping[str, bytes] = awaited or {}
        """What the turn was parked for, with the results, until it is finished with them."""
        self.started_at = started_at or datetime.now(UTC)
        execution.run = self

    async def take_turns(self, *, begins: bool = True) -> None:
        """Take turns until the run is left. `begins`: nothing of it was done before."""
        try:
            with self.execution.active():
                left = await self._until_left(begins)
                await self.tell_of_end(left)
        finally:
            # Else the two would hold each other, and the whole conversation, until the garbage collector comes.
            self.execution.run = None

    async def _until_left(self, begins: bool) -> Left:
        while True:
            match await self._settle(await self._next_settlement(begins)):
                case Proceed():
                    self.execution.retries = 0
                    self.awaited = {}
                case Retried():
                    self.execution.retries += 1
                    continue
                case Resumed(awaited):
                    self.execution.retries = 0
                    self.awaited = awaited
                case Left() as left:
                    return left
                case never:
                    assert_never(never)
            begins = False

    async def tell_of_end(self, left: Left) -> None:
        """Call back if the run has ended here. Raises nothing: no error of a callback's can change that any more."""
        agent, error = self.agent, None
        match left.ended:
            case None:
                return
            case Cancel():
                await self._call_back_finally(agent.on_run_cancelled)
                return
            case Fail(failure):
                error = failure
        completion = RunCompletion(
            self.context.output, self.context, self.started_at, finished_at=datetime.now(UTC), error=error
        )
        await self._call_back_finally(agent.on_run_end, completion)

    async def _call_back(self, callback: Callback, *told: Any) -> None:
        """Call back within the time that a turn may take."""
        if callback is not None:
            async with asyncio.timeout(self.policy.turn_timeout):
                await call_back(callback, self.context, self.execution, *told)

    async def _call_back_finally(self, callback: Callback, *told: Any) -> None:
        """Call back, and log what it raises."""
        try:
            await self._call_back(callback, *told)
        except (FatalAgentError, TimeoutError) as error:
            about = (self.execution.task_id, self.execution.agent_name, describe(error))
            logger.warning("task %s of %s: a callback failed after the run's end: %s", *about, extra=fields_here())

    async def _settle(self, settlement: Settlement) -> Answer:
        try:
            return await self.host.settle(settlement)
        except ContextError as unfit:
            return await self.host.settle(self._after_failure(unfit))

    async def _next_settlement(self, begins: bool) -> Settlement:
        try:
            if begins:
                await self._begin()
            if self.awaited:
                return await self._finish_turn()
            completion, ended = await self._turn()
            settlement = self._after_turn(completion)
            await self.execution.events.publish_event(ended)  # with the commit, which follows at once
            return settlement
        except asyncio.CancelledError:
            if interruption := self.host.interruption():
                return Settlement(interruption, self.context, turn_done=False)
            if _is_being_cancelled():
                raise
            return self._after_failure(RetryableError("the turn was cancelled from within"))
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # the boundary to the user's code: whatever it raises fails the turn alone
            return self._after_failure(error)

    async def _begin(self) -> None:
        """Tell of the run's start. That is a step: what it changes is kept for all tries of the first turn."""
        if self.agent.on_run_start is None:
            return
        if earlier := self.host.recall(RUN_START):
            with readable(f"what is kept of the step {RUN_START!r}"):
                if change := load_json(earlier.result):
                    self.context.messages[: change["before"]] = change["messages"]
            return
        count, before = len(self.context.messages), dump_json(self.context.messages)
        await self._call_back(self.agent.on_run_start)
        edited = dump_json(self.context.messages) != before
        change = {"before": count, "messages": self.context.messages} if edited else None
        await self.host.record(RUN_START, Recorded(dump_json(change)), urgent=False)

    async def _turn(self) -> tuple[TurnCompletion[ContextType], BaseEvent]:
        self.turn = self.context.turn
        self.steps = Steps(self.host, self.execution, "run_turn")
        self.execution.iterations += 1
        await self._call_back(self.agent.on_turn_start)
        told = Progress("run_turn", self.execution, self.context)
        completion = await told.follow(self._turn_in_time, lambda _: None)
        if not isinstance(completion, TurnCompletion):
            raise FatalAgentError(
                f"{type(self.agent).__name__}.run_turn returned {type(completion).__name__}: return a TurnCompletion"
            )
        self.context = completion.context
        self.context.turn = max(self.context.turn, self.turn + 1)
        await self._call_back(self.agent.on_turn_end, completion)
        return completion, told.event("completed")

    async def _finish_turn(self) -> Settlement:
        """The second half of a turn that was parked: its calls are answered, in their order."""
        self.turn = self.context.turn - 1
        self.steps = Steps(self.host, self.execution, "pending_results")
        results = read_results(self.awaited)
        came = [result for result, was_awaited in results if was_awaited]
        told = [(result.tool_call_id, result.output_data if result.error is None else result.error) for result in came]
        await self._call_back(self.agent.on_pending_tool_results, told)
        calls = {call["id"]: call for message in self.context.messages for call in message.get("tool_calls") or ()}
        for result in came:
            await self.steps.told_late(self.context, calls.get(result.tool_call_id, {}), result)
        answer_calls(self.context.messages, [result for result, _ in results])
        return Settlement(Continue(), self.context, turn_done=True)

    async def _turn_in_time(self) -> TurnCompletion[ContextType]:
        try:
            async with asyncio.timeout(self.policy.turn_timeout) as limit:
                return await self.agent.run_turn(self.context)
        except TimeoutError as late:
            if not limit.expired():
                raise
            raise TurnTimeoutError(
                f"turn {self.context.turn} took longer than turn_timeout={self.policy.turn_timeout:g} seconds"
            ) from late

    def _after_turn(self, completion: TurnCompletion[ContextType]) -> Settlement:
        waits = completion.pending_tool_call_ids or completion.pending_child_task_ids
        results = [result for _, result in completion.tool_call_results]
        if any(result.is_pending for result in results) and (completion.is_done or self._is_last or not waits):
            answer_calls(self.context.messages, [settled(result) for result in results])
        if completion.is_done:
            return self._complete(completion.output)
        if self._is_last:
            return self._fail(
                MaxTurnsError(f"the run was not done within max_turns={self.agent.max_turns}"), turn_done=True
            )
        if waits:
            return self._park(completion)
        return Settlement(Continue(), self.context, turn_done=True)

    def _park(self, completion: TurnCompletion[ContextType]) -> Settlement:
        results = completion.tool_call_results
        covered = {child for _, result in results for child in result.pending_child_task_ids}
        covered |= {result.tool_call_id for _, result in results if result.pending_result}
        if strays := {*completion.pending_tool_call_ids, *completion.pending_child_task_ids} - covered:
            raise FatalAgentError(
                f"{type(self.agent).__name__}.run_turn waits for {listed(sorted(strays))}, and no tool call of the "
                "turn does: use deferred_result and forking_tool"
            )
        endings = []
        if calls := completion.pending_tool_call_ids:
            endings.append(
                self._queue_event(EventType.TASK_PENDING_TOOL_CALL_RESULTS, data={"tool_call_ids": calls[:100]})
            )
        if children := completion.pending_child_task_ids:
            about = {"child_task_ids": children[:100], "children": len(children)}
            endings.append(self._queue_event(EventType.TASK_PENDING_CHILD_TASK_RESULTS, data=about))
        return Settlement(park(results), self.context, turn_done=True, endings=endings)

    @property
    def _is_last(self) -> bool:
        """Whether the finished turn is the last one that `max_turns` allows (checklist O17)."""
        return self.agent.max_turns is not None and self.context.turn >= self.agent.max_turns

    def _complete(self, output: Any) -> Settlement:
        try:
            dump_json(output)
        except ValueError as unfit:
            raise ContextError(f"the output ({type(output).__name__}) cannot be stored as JSON: {unfit}") from None
        self.context.output = output
        endings = (
            self._agent_event(EventType.AGENT_OUTPUT, turn=self.turn, data=output),
            self._agent_event(EventType.RUN_COMPLETED),
        )
        return Settlement(Complete(output, self._is_last), self.context, turn_done=True, endings=endings)

    def _after_failure(self, error: BaseException) -> Settlement:
        if not isinstance(error, FactorialError):  # the user's code: where it failed is what they need to know
            about = (self.execution.task_id, self.execution.agent_name, self.turn)
            logger.warning("task %s of %s: turn %d failed", *about, exc_info=error, extra=fields_here())
        match after_failure(error, self.execution.retries, self.policy):
            case Fail(final):
                return self._fail(final, turn_done=False)
            case Backoff(delay) as backoff:
                failed = self._queue_event(EventType.TASK_FAILED, error=describe(error))
                retried = self._queue_event(EventType.TASK_RETRIED, data={"delay": round(delay, 3)})
                return Settlement(backoff, self.context, turn_done=False, endings=(failed, retried))

    def _fail(self, error: BaseException, *, turn_done: bool) -> Settlement:
        tries = None if is_final(error) else self.policy.max_retries
        explanation = explain_failure(self.agent.name, self.execution.task_id, error, tries)
        endings = (
            self._queue_event(EventType.TASK_FAILED, error=describe(error)),
            self._agent_event(EventType.RUN_FAILED, error=explanation),
        )
        return Settlement(Fail(error), self.context, turn_done=turn_done, endings=endings)

    def _agent_event(self, event_type: str, **more: Any) -> BaseEvent:
        return AgentEvent(**self._base(event_type), **more)

    def _queue_event(self, event_type: str, **more: Any) -> BaseEvent:
        return QueueEvent(**self._base(event_type), **more)

    def _base(self, event_type: str) -> dict[str, Any]:
        execution = self.execution
        return {
            "event_type": event_type,
            "task_id": execution.task_id,
            "owner_id": execution.owner_id,
            "agent_name": execution.agent_name,
            "metadata": metadata(execution, self.turn),
        }


def _is_being_cancelled() -> bool:
    """Whether somebody has cancelled this asyncio task; if not, a `CancelledError` comes from the agent's own code."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
