"""What a finished or a failed turn leads to, and the events that announce it."""

from collections.abc import Sequence
from typing import Any

from factorial._core.json import dump_json
from factorial._core.sizes import MOST_BYTES, too_large
from factorial.agent.completion import TurnCompletion
from factorial.agent.lifecycle.failure import after_failure, describe, explain_failure, is_final, patience_with
from factorial.agent.lifecycle.outcome import AwaitedCall, Backoff, Complete, Continue, Defer, Fail, Outcome, Park
from factorial.agent.lifecycle.progress import metadata
from factorial.agent.lifecycle.run_state import RunState
from factorial.agent.lifecycle.turn import settled
from factorial.agent.lifecycle.waiting import LONGEST_CALL_ID, answer_calls, is_call_id, park
from factorial.config import AgentWorkerConfig
from factorial.errors import ContextError, FatalAgentError, MaxTurnsError
from factorial.events import AgentEvent, BaseEvent, EventType, QueueEvent
from factorial.utils import is_valid_task_id

__all__ = ["announced", "outcome_of_failure", "outcome_of_turn"]

_MOST_IDS = 100
"""Ids that one event lists."""


def outcome_of_turn(state: RunState[Any], completion: TurnCompletion[Any]) -> Outcome:
    """What the turn leads to that returned `completion`."""
    awaits = completion.pending_tool_call_ids or completion.pending_child_task_ids
    results = [result for _, result in completion.tool_call_results]
    is_last = _is_last(state)
    if any(result.is_pending for result in results) and (completion.is_done or is_last or not awaits):
        answer_calls(state.context.messages, [settled(result) for result in results])
    if completion.is_done:
        return _complete(state, completion, is_last=is_last)
    if is_last:
        return Fail(MaxTurnsError(f"the run was not done within max_turns={state.agent.max_turns}"), turn_done=True)
    if awaits:
        return _park(state, completion)
    return Continue()


def outcome_of_failure(state: RunState[Any], error: BaseException, policy: AgentWorkerConfig) -> Outcome:
    """What the turn leads to that raised `error`."""
    return after_failure(error, state.execution_ctx.retries, state.deferred_for, policy)


def _is_last(state: RunState[Any]) -> bool:
    """Whether the finished turn is the last one that `max_turns` allows."""
    return state.agent.max_turns is not None and state.context.turn >= state.agent.max_turns


def _complete(state: RunState[Any], completion: TurnCompletion[Any], *, is_last: bool) -> Outcome:
    output = completion.output
    try:
        size = len(dump_json(output))
    except ValueError as unfit:
        raise ContextError(f"the output ({type(output).__name__}) cannot be stored as JSON: {unfit}") from None
    if size > MOST_BYTES:
        raise ContextError(too_large("the output as JSON", size))
    state.context.output = output
    return Complete(output, is_last, completion.finish_reason)


def _park(state: RunState[Any], completion: TurnCompletion[Any]) -> Outcome:
    results = [result for _, result in completion.tool_call_results]
    calls = {result.tool_call_id for result in results if result.pending_result}
    children = {child for result in results for child in result.pending_child_task_ids}
    own_calls = [one for one in dict.fromkeys(completion.pending_tool_call_ids) if one not in calls]
    own_children = [one for one in dict.fromkeys(completion.pending_child_task_ids) if one not in children]
    for wrong in (
        *(one for one in own_calls if not is_call_id(one)),
        *(one for one in own_children if not is_valid_task_id(one)),
    ):
        raise FatalAgentError(
            f"{type(state.agent).__name__}.run_turn awaits {wrong!r}: pending_tool_call_ids are strings of 1 to "
            f"{LONGEST_CALL_ID} characters, and pending_child_task_ids are what spawn_child_task returned"
        )
    return park(results, own_calls, own_children)


def announced(state: RunState[Any], outcome: Outcome, policy: AgentWorkerConfig) -> Sequence[BaseEvent]:
    """The events that announce `outcome`, if it is carried out."""
    events = _Events(state)
    match outcome:
        case Complete(output=output, finish_reason=reason):
            answer = events.of_agent(EventType.AGENT_OUTPUT, turn=state.turn, data=output)
            ended = events.of_agent(EventType.RUN_COMPLETED)
            if reason is not None:
                for event in (answer, ended):
                    event.metadata = {**(event.metadata or {}), "finish_reason": reason}
            return answer, ended
        case Park(calls):
            return events.of_parking(calls)
        case Backoff(delay, error):
            failed = events.of_queue(EventType.TASK_FAILED, error=describe(error))
            return failed, events.of_queue(EventType.TASK_RETRIED, data={"delay": round(delay, 3)})
        case Defer(delay, error, is_first=True):
            about = {"delay": round(delay, 3), "patience": patience_with(error, policy)}
            return (events.of_queue(EventType.TASK_DEFERRED, error=describe(error), data=about),)
        case Fail(error):
            tries = None if is_final(error) else policy.max_retries
            context = state.execution_ctx
            explanation = explain_failure(context.agent_name, context.task_id, error, tries)
            failed = events.of_queue(EventType.TASK_FAILED, error=describe(error))
            return failed, events.of_agent(EventType.RUN_FAILED, error=explanation)
    return ()


class _Events:
    """Events about the run, as it is now."""

    def __init__(self, state: RunState[Any]) -> None:
        self._state = state

    def of_agent(self, event_type: str, **more: Any) -> BaseEvent:
        return AgentEvent(**self._base(event_type), **more)

    def of_queue(self, event_type: str, **more: Any) -> BaseEvent:
        return QueueEvent(**self._base(event_type), **more)

    def of_parking(self, calls: Sequence[AwaitedCall]) -> Sequence[BaseEvent]:
        open_calls = [call for call in calls if call.message is None]
        tool_call_ids = [call.tool_call_id for call in open_calls if call.children is None]
        children = [child for call in open_calls for child in call.children or ()]
        events = []
        if tool_call_ids:
            about: dict[str, Any] = {"tool_call_ids": tool_call_ids[:_MOST_IDS]}
            events.append(self.of_queue(EventType.TASK_PENDING_TOOL_CALL_RESULTS, data=about))
        if children:
            about = {"child_task_ids": children[:_MOST_IDS], "children": len(children)}
            events.append(self.of_queue(EventType.TASK_PENDING_CHILD_TASK_RESULTS, data=about))
        return events

    def _base(self, event_type: str) -> dict[str, Any]:
        context = self._state.execution_ctx
        return {
            "event_type": event_type,
            "task_id": context.task_id,
            "owner_id": context.owner_id,
            "agent_name": context.agent_name,
            "metadata": metadata(context, self._state.turn),
        }
