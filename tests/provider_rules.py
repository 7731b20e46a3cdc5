"""What providers accept as a conversation: the strictest rule of each, in one checker.

OpenAI rejects unknown members, names outside `^[a-zA-Z0-9_-]{1,64}$`, ids of more than 40 characters, and tool calls
that are not answered. Anthropic and Gemini reject arguments that are not a JSON object, and empty answers. Mistral
rejects a conversation that ends with an answer, and ids of others that do not have nine letters and digits.
"""

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

__all__ = ["breaches"]

_MEMBERS = {
    "system": {"role", "content"},
    "user": {"role", "content"},
    "assistant": {"role", "content", "tool_calls"},
    "tool": {"role", "content", "tool_call_id"},
}
_CALL = {"id", "type", "function"}
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_ID = re.compile(r"[a-zA-Z0-9_-]{1,40}")
_NINE = re.compile(r"[a-zA-Z0-9]{9}")


def breaches(
    messages: Sequence[dict[str, Any]], *, own: Collection[str] = (), echo: Collection[str] = (), nine: bool = False
) -> list[str]:
    """What a provider would reject in the messages of a request.

    `own` are ids of tool calls that the provider made itself, `echo` the further members that it accepts. `nine`: ids
    of others must have nine letters and digits.
    """
    found: list[str] = []
    open_calls: list[str] = []
    seen: set[str] = set()
    for place, message in enumerate(messages):
        role = message.get("role")
        if role not in _MEMBERS:
            found.append(f"{place}: role {role!r}")
            continue
        if further := message.keys() - _MEMBERS[role] - set(echo):
            found.append(f"{place}: unknown members {sorted(further)}")
        if role == "tool":
            if not open_calls or message.get("tool_call_id") != open_calls.pop(0):
                found.append(f"{place}: answers {message.get('tool_call_id')!r}, which is not the next open call")
            if not isinstance(message.get("content"), str):
                found.append(f"{place}: the result is not text")
            continue
        if open_calls:
            found.append(f"{place}: comes before the answers to {open_calls}")
            open_calls = []
        if role == "assistant":
            found += [f"{place}: {flaw}" for flaw in _flaws_of_answer(message)]
            for call in message.get("tool_calls") or ():
                found += [f"{place}: {flaw}" for flaw in _flaws_of_call(call, own, echo, nine)]
                if call.get("id") in seen:
                    found.append(f"{place}: the id {call['id']!r} once more")
                seen.add(call.get("id"))
                open_calls.append(call.get("id"))
    if open_calls:
        found.append(f"nothing answers {open_calls}")
    if messages and messages[-1].get("role") == "assistant":
        found.append("it ends with an answer")
    try:
        json.dumps(messages, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:
        found.append(f"not JSON in UTF-8: {error}")
    return found


def _flaws_of_answer(message: dict[str, Any]) -> list[str]:
    content, calls = message.get("content"), message.get("tool_calls")
    flaws = []
    if "tool_calls" in message and (not isinstance(calls, list) or not calls):
        flaws.append(f"tool_calls is {calls!r}")
    if "content" not in message or not (content is None or isinstance(content, str)):
        flaws.append(f"content is {content!r}")
    if isinstance(content, str) and not content.strip():
        flaws.append("empty content")
    if content is None and not calls:
        flaws.append("neither content nor calls")
    return flaws


def _flaws_of_call(call: dict[str, Any], own: Collection[str], echo: Collection[str], nine: bool) -> list[str]:
    flaws = []
    if further := call.keys() - _CALL - set(echo):
        flaws.append(f"unknown members of a call {sorted(further)}")
    if call.get("type") != "function":
        flaws.append(f"type {call.get('type')!r}")
    function = call.get("function")
    if not isinstance(function, dict) or function.keys() != {"name", "arguments"}:
        return [*flaws, f"function {function!r}"]
    if not isinstance(function["name"], str) or not _NAME.fullmatch(function["name"]):
        flaws.append(f"name {function['name']!r}")
    if not _is_object(function["arguments"]):
        flaws.append(f"arguments {function['arguments']!r}")
    call_id = call.get("id")
    if not isinstance(call_id, str) or not (call_id in own or (_NINE if nine else _ID).fullmatch(call_id)):
        flaws.append(f"id {call_id!r}")
    return flaws


def _is_object(text: object) -> bool:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        return isinstance(text, str) and isinstance(json.loads(text, parse_constant=refuse), dict)
    except ValueError:
        return False
