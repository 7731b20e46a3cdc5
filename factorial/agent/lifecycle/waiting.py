"""What a parked turn awaits, and how it is finished when everything has arrived.

A turn whose tools await results is committed with the model's message alone. The answers to all of its calls are held
back, so that they enter the conversation together, in the model's order, before anything else. The plan for that is
stored with the run. The results are collected in the mailbox, under the keys `tool:<call id>` and `child:<task id>`.

Called by `activation.py` (both ways), and by the client for a result from outside.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from factorial._core.json import dump_json, load_json
from factorial._core.sizes import MAX_VALUE_BYTES, MOST_BYTES, byte_length, too_large
from factorial._core.text import error_text
from factorial.agent.lifecycle.calls import tool_message
from factorial.agent.lifecycle.codec import readable
from factorial.agent.lifecycle.outcome import AwaitedCall, Park
from factorial.errors import ContextError, TaskError
from factorial.tools import FunctionToolActionResult
from factorial.tools.output import failure, shape

__all__ = [
    "LONGEST_CALL_ID", "PLAN", "Arrival", "answer_calls", "awaited_keys", "encode_plan", "encode_result", "is_call_id",
    "park", "read_arrivals",
]  # fmt: skip

PLAN = "plan"
"""The key of the plan among the results."""

LONGEST_CALL_ID = 512
"""Characters."""


def is_call_id(call_id: object) -> bool:
    """Whether a result can be delivered for a tool call with this id."""
    return isinstance(call_id, str) and 0 < len(call_id) <= LONGEST_CALL_ID


def park(
    results: Iterable[FunctionToolActionResult], own_calls: Iterable[str] = (), own_children: Sequence[str] = ()
) -> Park:
    """The outcome of a turn with these calls, some of which await their results, and with what the agent's own
    `run_turn` awaits."""
    calls = [_awaited_call(result) for result in results]
    calls += [AwaitedCall(call_id, is_own=True) for call_id in own_calls]
    if own_children:
        calls.append(AwaitedCall("", children=tuple(own_children), is_own=True))
    return Park(tuple(calls))


def _awaited_call(result: FunctionToolActionResult) -> AwaitedCall:
    if not result.is_pending:
        return AwaitedCall(result.tool_call_id, message=tool_message(result))
    if result.pending_result:
        return AwaitedCall(result.tool_call_id, timeout=result.timeout)
    children = tuple(result.pending_child_task_ids)
    return AwaitedCall(result.tool_call_id, children=children, shown=result.output_str, timeout=result.timeout)


def awaited_keys(waiting: Park) -> dict[str, float]:
    """Each thing that the run awaits, with the seconds after which it stops waiting (0: never). Tools come first."""
    open_calls = [call for call in waiting.calls if call.message is None]
    tools = {f"tool:{call.tool_call_id}": call.timeout for call in open_calls if call.children is None}
    children = {f"child:{child}": call.timeout for call in open_calls for child in call.children or ()}
    return tools | children


def encode_plan(waiting: Park) -> bytes:
    """What has to be known of `waiting` when everything has arrived."""
    return dump_json([asdict(call) for call in waiting.calls])


def encode_result(tool_call_id: str, value: Any) -> bytes:
    """A result from outside as it is stored. `value` is what a tool may return, or an exception.

    Raises `ContextError` if it is neither text nor JSON, or too large.
    """
    result = (
        failure(tool_call_id, error_text(value)) if isinstance(value, BaseException) else shape(tool_call_id, value)
    )
    what = f"the result of tool call {tool_call_id!r}"
    if (size := byte_length(result.output_str)) > MOST_BYTES:
        raise ContextError(too_large(what, size))
    if result.error is not None and not isinstance(value, BaseException | FunctionToolActionResult):
        reason = result.error.removeprefix("the tool returned ")
        raise ContextError(f"{what} cannot be stored: {reason}")
    try:
        stored = dump_json({"output_str": result.output_str, "output_data": result.output_data, "error": result.error})
    except (ValueError, TypeError, RecursionError) as unfit:
        raise ContextError(f"{what} cannot be stored as JSON: {unfit}") from None
    if len(stored) > MAX_VALUE_BYTES:
        raise ContextError(too_large(f"{what} as JSON", len(stored), MAX_VALUE_BYTES))
    return stored


@dataclass(frozen=True, slots=True)
class Arrival:
    """A call of a parked turn, with what has arrived for it."""

    call: AwaitedCall
    result: FunctionToolActionResult | None = None
    """What answers the call; None if it awaited children."""
    ends: Sequence[tuple[str, Any]] = ()
    """The children, in the order of spawning: each task id with its output, or with a `TaskError`."""

    @property
    def was_awaited(self) -> bool:
        """Whether the run was parked for it."""
        return self.call.message is None

    @property
    def has_no_call(self) -> bool:
        """Whether these are children that the agent's own `run_turn` awaits: there is no call to answer."""
        return self.call.is_own and self.result is None

    @property
    def shown(self) -> list[tuple[str, Any]]:
        """What callbacks see of it: pairs of an id and a result."""
        if self.result is None:
            return list(self.ends) if self.call.is_own else [(self.call.tool_call_id, list(self.ends))]
        return [(self.call.tool_call_id, self.result.output_data if self.result.error is None else self.result.error)]


def read_arrivals(awaited: Mapping[str, bytes]) -> list[Arrival]:
    """What has arrived for each call of the turn, in the model's order."""
    with readable("what the run was parked for"):
        return [_arrival(AwaitedCall(**call), awaited) for call in load_json(awaited[PLAN])]


def _arrival(call: AwaitedCall, awaited: Mapping[str, bytes]) -> Arrival:
    if call.message is not None:
        result = FunctionToolActionResult(tool_call_id=call.tool_call_id, output_str=call.message["content"])
        return Arrival(call, result)
    if call.children is not None:
        return Arrival(call, ends=[(child, _end(child, call, awaited)) for child in call.children])
    given = _arrived(awaited, f"tool:{call.tool_call_id}")
    if not given:
        return Arrival(call, failure(call.tool_call_id, f"no result came within {call.timeout:g} seconds"))
    return Arrival(call, FunctionToolActionResult(tool_call_id=call.tool_call_id, **given))


def _end(child: str, call: AwaitedCall, awaited: Mapping[str, bytes]) -> Any:
    end = _arrived(awaited, f"child:{child}")
    match end["status"]:
        case "completed":
            return end["output"]
        case "failed":
            reason = end["error"] or "the task failed"
        case "cancelled":
            reason = "the task was cancelled"
        case "expired":
            reason = f"the task had not ended within {call.timeout:g} seconds, and was cancelled"
        case _:
            reason = "there is no such task, or this task has not spawned it"
    return TaskError(child, reason)


def _arrived(awaited: Mapping[str, bytes], key: str) -> dict[str, Any]:
    arrived: dict[str, Any] = load_json(awaited[key][1:] or b"{}")
    return arrived


def answer_calls(messages: list[dict[str, Any]], results: Sequence[FunctionToolActionResult]) -> None:
    """Insert the results after the latest message that made the calls, except for calls that are answered there
    already."""
    called = {result.tool_call_id for result in results}
    position = len(messages)
    for index in range(len(messages) - 1, -1, -1):
        if called & {call.get("id") for call in messages[index].get("tool_calls") or ()}:
            position = index + 1
            break
    answered = {message.get("tool_call_id") for message in messages[position:]}
    answers = [tool_message(result) for result in results if result.tool_call_id not in answered]
    messages[position:position] = answers
