"""What has to be true of a conversation, whoever made it: each tool call is answered, right after its message."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["answered", "call_ids", "role_of"]

_NO_RESULT = "Error: the run ended before this call had a result"


def call_ids(messages: Sequence[Mapping[str, Any]]) -> set[str]:
    """The ids of all tool calls in a conversation."""
    return {call_id for message in messages for call_id in _calls_of(message)}


def answered(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation, in which tool calls that nothing answers get an error as their answer.

    A run that is cancelled while it awaits results, or that fails within a tool, leaves such calls behind. Providers
    reject a conversation with them.
    """
    complete: list[dict[str, Any]] = []
    open_calls: list[str] = []
    for message in messages:
        if role_of(message) == "tool":
            if message.get("tool_call_id") in open_calls:
                open_calls.remove(message["tool_call_id"])
        else:
            complete += _without_result(open_calls)
            open_calls = _calls_of(message)
        complete.append(message)
    return complete + _without_result(open_calls)


def role_of(message: object) -> object:
    """The role of a message; None if a program has put something else than a dictionary there."""
    return message.get("role") if isinstance(message, dict) else None


def _calls_of(message: object) -> list[str]:
    """The ids of the calls in one message."""
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    return [str(call.get("id")) for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def _without_result(call_ids: Sequence[str]) -> list[dict[str, Any]]:
    return [{"role": "tool", "tool_call_id": call_id, "content": _NO_RESULT} for call_id in call_ids]
