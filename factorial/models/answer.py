"""What a model's answer says: the tools that it calls, why it ended, and the message that continues the conversation.

An answer is a `view.viewed` one.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from factorial._core.json import is_json_object
from factorial.models.view import is_portable_id

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion, ChatCompletionMessageFunctionToolCall

__all__ = [
    "NO_ANSWER", "assistant_message", "finish_reason", "function_calls", "is_incomplete", "last_finish_reason",
]  # fmt: skip

NO_ANSWER = "(no answer)"
"""What stands in the conversation for an answer without text and without calls: some providers take no empty ones."""

_INCOMPLETE = ("length", "content_filter", "refusal")
_MESSAGE = ("role", "content", "refusal", "tool_calls", "provider_data")


def function_calls(response: "ChatCompletion") -> "list[ChatCompletionMessageFunctionToolCall]":
    """The tool calls in the answer, in the model's order. Requests offer functions only, so all calls are of those."""
    calls = (response.choices[0].message.tool_calls or []) if response.choices else []
    return [call for call in calls if call.type == "function"]


def finish_reason(response: "ChatCompletion") -> str | None:
    """Why the answer ended: `stop`, `tool_calls`, `length`, `content_filter` or `refusal`; None if it holds nothing."""
    if not response.choices:
        return None
    choice = response.choices[0]
    if choice.message.refusal and not choice.message.tool_calls:
        return "refusal"
    reason: str = choice.finish_reason
    return reason


def last_finish_reason(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the answer ended that the conversation ends with; None if it does not end with one."""
    last = next((message for message in reversed(messages) if message.get("role") != "tool"), None)
    if last is None or last.get("role") != "assistant":
        return None
    reason: str | None = (last.get("provider_data") or {}).get("finish_reason")
    return reason or ("tool_calls" if last.get("tool_calls") else "stop")


def is_incomplete(reason: str | None) -> bool:
    """Whether an answer that ended for this reason is not what the model would have said."""
    return reason in _INCOMPLETE


def assistant_message(response: "ChatCompletion") -> dict[str, Any]:
    """The model's answer as the message to append to the conversation.

    It holds only members that every provider accepts, and if there is more to keep, `provider_data`: who answered,
    what the message does not show as it was sent, and why the answer ended if it was incomplete. `conversation` takes
    it away before a request, and puts back what the provider wants to see again.
    """
    answer = response.choices[0].message.model_dump(exclude_unset=True, warnings=False)
    data = answer.get("provider_data") or {}
    text, refusal, calls = answer.get("content"), answer.get("refusal"), answer.get("tool_calls") or ()
    content = text if isinstance(text, str) and text.strip() else refusal
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else NO_ANSWER)}
    if calls:
        message["tool_calls"] = [_sendable_call(call) for call in calls]
    sent = {name: value for name, value in answer.items() if name not in _MESSAGE and value not in (None, [], {})}
    if refusal:
        sent["refusal"] = refusal
    sent |= data.get("message", {})
    reason = finish_reason(response)
    kept: dict[str, Any] = {"message": sent} if sent else {}
    if is_incomplete(reason):
        kept["finish_reason"] = reason
    if kept or not all(is_portable_id(call["id"]) for call in calls):
        message["provider_data"] = {"provider": data.get("provider"), "api": data.get("api", "chat"), **kept}
    return message


def _sendable_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """The call as every provider takes it. Arguments that are not a JSON object are replaced with `{}`, because some
    providers parse them, and would reject the whole conversation. The tool's error result says what was wrong."""
    arguments = call["function"]["arguments"]
    function = {"name": call["function"]["name"], "arguments": arguments if is_json_object(arguments) else "{}"}
    return {"id": call["id"], "type": "function", "function": function}
