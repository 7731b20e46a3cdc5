"""What a model's answer asks for."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion, ChatCompletionMessageFunctionToolCall

__all__ = ["function_calls"]


def function_calls(response: "ChatCompletion") -> "list[ChatCompletionMessageFunctionToolCall]":
    """The tools that the model calls, in its order. Calls of other kinds cannot come: we offer functions only."""
    calls = (response.choices[0].message.tool_calls or []) if response.choices else []
    return [call for call in calls if call.type == "function"]
