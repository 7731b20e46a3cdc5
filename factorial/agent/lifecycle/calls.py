"""Model calls and tool calls as steps, whichever class overrides `completion` or `tool_action`: the outermost call of
each is the step.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from functools import wraps
from typing import TYPE_CHECKING, Any

from factorial._core.conversation import call_ids
from factorial._core.json import dump_anything, dump_json, load_json
from factorial._core.sizes import MOST_BYTES, too_large
from factorial.agent.callbacks import call_back
from factorial.agent.lifecycle.guard import Guard, StepCall, StepKind
from factorial.agent.lifecycle.host import Recorded
from factorial.agent.lifecycle.progress import Ending, Progress, metadata, showing
from factorial.agent.lifecycle.run_state import RunState
from factorial.agent.lifecycle.step import Step
from factorial.agent.lifecycle.steps import Steps, current_frame
from factorial.context import AgentContext
from factorial.errors import RetryableError
from factorial.events import AgentEvent, EventType, bounded, whole_or_size
from factorial.models.answer import finish_reason, function_calls
from factorial.models.view import completion_of, viewed
from factorial.tools import FINAL_OUTPUT, FunctionToolActionResult
from factorial.tools.output import failure, within_limit

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion, ChatCompletionMessageToolCall

__all__ = ["as_step", "publish_late_result", "retract_loose_pieces", "tool_message"]


def as_step(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """The agent method `name` (`completion` or `tool_action`) as a step, when it is the outermost call."""
    if getattr(method, "is_step", False):
        return method

    @wraps(method)
    async def step(self: Any, first: Any, second: Any) -> Any:
        frame = current_frame()
        if frame is None or frame.is_in_step:
            return await method(self, first, second)
        take = _take_completion if name == StepKind.COMPLETION else _take_tool_action
        return await take(frame.steps, first, second, lambda: method(self, first, second))

    step.is_step = True  # type: ignore[attr-defined]
    return step


async def _take_completion(
    steps: Steps, agent_ctx: AgentContext, messages: list[Any], call: Callable[[], Awaitable["ChatCompletion"]]
) -> "ChatCompletion":
    from openai.types.chat import ChatCompletion

    async def called() -> Any:
        await retract_loose_pieces()
        response: object = await call()
        if not isinstance(response, ChatCompletion):
            return response
        # The agent's own code may have asked a model, or changed the answer.
        view = viewed(response, taken=call_ids(agent_ctx.messages))
        if not view.choices:
            raise RetryableError("the model's answer holds no choice")
        verdict = steps.state.agent.validate_completion(agent_ctx, view)
        if inspect.isawaitable(verdict):
            await verdict
        steps.state.has_loose_pieces = False
        return view

    def recall(recorded: Recorded) -> ChatCompletion:
        return completion_of(load_json(recorded.result))

    step = Step(
        name=StepKind.COMPLETION,
        kind=StepKind.COMPLETION,
        call=called,
        returns=ChatCompletion,
        record=_record_completion,
        recall=recall,
        kwargs={"messages": len(messages)},
        ending=_end_of_completion,
        urgent=_calls_tools,
    )
    return await steps.take(step, agent_ctx)


async def retract_loose_pieces() -> None:
    """Announce that pieces of an unfinished answer, which may have been published before, are void."""
    frame = current_frame()
    if frame is None or not frame.state.has_loose_pieces:
        return
    state = frame.state
    state.has_loose_pieces = False
    if state.agent.stream:
        about = metadata(state.execution_ctx, state.context.turn)
        event = AgentEvent(
            event_type=EventType.COMPLETION_RETRACTED,
            turn=state.context.turn,
            metadata=about,
            data={"attempt": about["attempt"], "pickups": about["pickups"]},
        )
        await state.execution_ctx.events.publish_event(event)


def _record_completion(response: "ChatCompletion") -> Recorded:
    answer = response.model_dump(exclude_unset=True, warnings=False)
    try:
        return Recorded(dump_json(answer))
    except ValueError:  # text that UTF-8 cannot hold: half of an emoji
        return Recorded(dump_anything(answer), altered=True)


def _calls_tools(response: "ChatCompletion") -> bool:
    return any(call.function.name != FINAL_OUTPUT for call in function_calls(response))


def _end_of_completion(response: "ChatCompletion") -> Ending:
    choice = response.choices[0]
    calls = [call.function.name for call in function_calls(response)]
    counts = {"prompt_tokens", "completion_tokens"}
    usage = response.usage.model_dump(include=counts, warnings=False) if response.usage else None
    about = {
        "model": response.model,
        "content": choice.message.content,
        "tool_calls": calls,
        "finish_reason": finish_reason(response),
        "usage": usage,
    }
    shown = showing(about | ({"refusal": choice.message.refusal} if choice.message.refusal else {}))
    return replace(shown, more={**shown.more, "text": bounded(choice.message.content or "")})


async def _take_tool_action(
    steps: Steps,
    tool_call: "ChatCompletionMessageToolCall",
    agent_ctx: AgentContext,
    call: Callable[[], Awaitable[FunctionToolActionResult]],
) -> FunctionToolActionResult:
    async def called() -> FunctionToolActionResult:
        result = await call()
        if isinstance(result, FunctionToolActionResult):
            result.tool_call_id = result.tool_call_id or tool_call.id  # an overridden method may leave it out
            return within_limit(result)
        return result

    about = tool_call.model_dump(warnings=False)
    with steps.open_call() as is_last:
        step = Step(
            name=f"tool:{_without_slashes(tool_call.id)}",
            kind=StepKind.TOOL_ACTION,
            about=tool_call,
            call=called,
            returns=FunctionToolActionResult,
            record=_record_result,
            recall=_recall_result,
            args=[about],
            shown=_shown(about),
            ending=lambda result: _end_of_tool_action(about, result),
            urgent=lambda _: not is_last(),
            guards=(_Deferral(steps.state),),
            tool_call_id=tool_call.id,
        )
        return await steps.take(step, agent_ctx)


class _Deferral(Guard):
    """Has the host expect the result of a deferred tool before the tool begins, because it may come at once."""

    def __init__(self, state: RunState[Any]) -> None:
        self._state = state

    async def before(self, call: StepCall) -> None:
        tool = self._state.agent.tools.get(call.about.function.name)
        if tool is None or tool.deferral is None or tool.deferral.awaits != "result":
            return
        call_id = call.about.id
        if not await self._state.host.expect(f"tool:{call_id}", call.key, tool.name):
            # The result is delivered by this id, so it would be taken for that of the other call.
            call.result = failure(
                call_id,
                f"another call of this answer has the id {call_id!r} too, so their results could not be told apart; "
                f"call {tool.name!r} again, alone",
            )

    async def after(self, call: StepCall) -> None:
        if call.has_result and call.error is None and call.result.pending_result:
            await call_back(self._state.agent.on_pending_tool_call, call.agent_ctx, call.execution_ctx, call.about)


async def publish_late_result(
    state: RunState[Any], tool_call: Mapping[str, Any], result: FunctionToolActionResult
) -> None:
    """Publish the end of a tool call whose result came after its turn was parked."""
    if ending := _end_of_tool_action(tool_call, result):
        progress = Progress(StepKind.TOOL_ACTION, state.execution_ctx, state.context, args=[tool_call])
        progress.shown = _shown(tool_call)
        await progress.publish_end(ending)


def tool_message(result: FunctionToolActionResult) -> dict[str, Any]:
    """The result of a tool call as the message that answers it."""
    return {"role": "tool", "tool_call_id": result.tool_call_id, "content": result.output_str}


def _record_result(result: FunctionToolActionResult) -> Recorded:
    if result.is_pending:
        about = {field.name: getattr(result, field.name) for field in fields(result)}  # asdict would copy the value
        return Recorded(result=dump_anything(about))
    about = {"error": result.error}
    if not (isinstance(result.output_data, str) and result.output_data == result.output_str):  # mostly they are one
        about["output_data"] = result.output_data
    recorded = Recorded(result=dump_anything(about), message=dump_json(tool_message(result)))
    if (size := len(recorded.result)) <= MOST_BYTES:
        return recorded
    failed = failure(result.tool_call_id, too_large("the data that the tool returned, as JSON,", size))
    return replace(_record_result(failed), altered=True)


def _recall_result(recorded: Recorded) -> FunctionToolActionResult:
    about = load_json(recorded.result)
    if not recorded.message:
        return FunctionToolActionResult(**about)
    message = load_json(recorded.message)
    return FunctionToolActionResult(
        tool_call_id=message["tool_call_id"],
        output_str=message["content"],
        output_data=about.get("output_data", message["content"]),
        error=about["error"],
    )


def _end_of_tool_action(tool_call: Mapping[str, Any], result: FunctionToolActionResult) -> Ending | None:
    """None for a result that is delivered later. A call that has spawned its children is completed."""
    if result.pending_result:
        return None
    if result.error is not None:
        return Ending(result.error)
    about = bounded({"tool_call": tool_call, "output_str": result.output_str})
    return Ending(more={"result": about | {"output_data": whole_or_size(result.output_data)}})


def _shown(tool_call: Mapping[str, Any]) -> dict[str, Any]:
    """What a page shows of a call, without taking the call apart. Arguments that are not JSON are left as text."""
    arguments = tool_call["function"]["arguments"]
    with suppress(ValueError):
        arguments = load_json(arguments or "{}")
    return {
        "tool_name": tool_call["function"]["name"],
        "tool_call_id": tool_call["id"],
        "arguments": bounded(arguments),
    }


def _without_slashes(call_id: str) -> str:
    """A provider's id as a part of a step's key, in which slashes separate a step from the one that contains it."""
    return call_id.replace("%", "%25").replace("/", "%2F")
