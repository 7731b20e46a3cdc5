"""What a model's answer holds: the tools that it calls, and the message that continues the conversation."""

from typing import TYPE_CHECKING, Any

from factorial._core.json import load_json

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion, ChatCompletionMessageFunctionToolCall

__all__ = ["assistant_message", "function_calls"]


def function_calls(response: "ChatCompletion") -> "list[ChatCompletionMessageFunctionToolCall]":
    """The tool calls in the answer, in the model's order. Requests offer functions only, so all calls are of those."""
    calls = (response.choices[0].message.tool_calls or []) if response.choices else []
    return [call for call in calls if call.type == "function"]


def assistant_message(completion: "ChatCompletion") -> dict[str, Any]:
    """The model's answer as the message to append to the conversation.

    It holds only members that every provider accepts. Arguments that are not a JSON object are replaced with `{}`:
    some providers parse them, and would reject the whole conversation. (The tool's error result says what was wrong
    with them.) A tool call keeps its `extra_content`, because Gemini rejects a call that comes back without it.
    """
    answer = completion.choices[0].message
    calls = [_sendable_call(call) for call in answer.tool_calls or () if getattr(call, "function", None)]
    message: dict[str, Any] = {"role": "assistant", "content": answer.content or (None if calls else "")}
    if calls:
        message["tool_calls"] = calls
    if getattr(answer, "refusal", None):
        message["refusal"] = answer.refusal
    return message


def _sendable_call(call: Any) -> dict[str, Any]:
    sendable: dict[str, Any] = {
        "id": call.id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": _sendable_arguments(call.function.arguments)},
    }
    if extra := (call.model_extra or {}).get("extra_content"):
        sendable["extra_content"] = extra
    return sendable


def _sendable_arguments(arguments: str | None) -> str:
    try:
        return arguments if arguments and isinstance(load_json(arguments), dict) else "{}"
    except ValueError:
        return "{}"
