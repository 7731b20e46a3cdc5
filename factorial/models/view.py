"""The view of a provider's answer. It is what is checked, executed, recorded, published, stored and sent again.

Servers of chat completions differ in what they send: tool calls without a type or an id, arguments as an object, names
that no request may hold, content in parts. `viewed` makes one shape of all of it, and nothing else in the package looks
at what a server sent. Any other protocol has a view of its own with the same result.

What the provider sent is not lost. The view's message has the member `provider_data`:

    provider        the provider's name; None if the agent's own code asked the model
    api             the protocol
    message         the members that the view changed, as the provider sent them

Members that chat completions do not know (`reasoning_content`) stay where they are. `answer.assistant_message` makes
the message of the conversation out of both.
"""

import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from factorial._core.json import dump_anything, load_json
from factorial._core.text import printable_text

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

__all__ = [
    "Origin", "chosen_id", "completion_of", "error_in_choice", "is_portable_id", "sent_calls", "storable",
    "text_of", "viewed",
]  # fmt: skip

_FOREIGN = re.compile(r"[^A-Za-z0-9_-]")
"""What no provider takes in the name of a function."""
_LONGEST_NAME = 64
_UNNAMED = "unnamed"
"""The name of a call that has none. There is no such tool, and the model is told so."""
_PLAIN_ID = re.compile(r"[!-~]{1,128}")
"""An id that can be kept: it fits a URL, a log line and the key of a journal entry."""
_PORTABLE_ID = re.compile(r"[A-Za-z0-9_-]{1,40}")
"""An id that other providers take, too."""
_NOTHING: tuple[object, ...] = (None, "", [], {})
_INCOMPLETE = "{"
"""The arguments of a call that was cut off before they began. `{}` would be a call without arguments."""

_LENGTH = frozenset({"length", "max_tokens", "max_output_tokens", "max_length", "model_length", "token_limit"})
_FILTERED = frozenset({
    "content_filter", "content_filtered", "safety", "recitation", "blocklist", "prohibited_content", "spii",
    "sensitive",
})  # fmt: skip
_BROKEN_OFF = frozenset({
    "error", "network_error", "insufficient_system_resource", "abort", "malformed_function_call",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an answer comes from."""

    provider: str | None = None
    """The provider's name; None if it is not known."""
    api: str = "chat"


_UNKNOWN = Origin()


def viewed(
    answer: "ChatCompletion | Mapping[str, Any]",
    origin: Origin = _UNKNOWN,
    taken: Collection[str] = (),
    ids: Sequence[str] = (),
) -> "ChatCompletion":
    """The view of `answer`, which is a `ChatCompletion` or the body of one. The view of a view is the same.

    `taken` are the ids of the conversation's earlier tool calls. Calls without an id, or with one that is taken, get a
    new one; `ids` are those that were chosen while the answer was streamed. The view has one choice, or none if the
    answer holds no message. Raises nothing.
    """
    is_body = isinstance(answer, Mapping)
    sent = storable(dict(answer)) if isinstance(answer, Mapping) else _dumped(answer)
    usage = sent.get("usage")
    body = sent | {"object": "chat.completion", "usage": usage if isinstance(usage, dict) else None}
    for member, otherwise in (("id", ""), ("model", ""), ("created", 0)):
        if not isinstance(body.get(member), type(otherwise)):
            body[member] = otherwise
    choice = _first_choice(body)
    if choice is not None:
        message = dict(choice["message"])
        known = message.pop("provider_data", None)
        if is_body or not isinstance(known, dict) or (origin.provider and known.get("provider") != origin.provider):
            known = {}  # a server does not say who it is
        reason = _finish_reason(choice.get("finish_reason"))
        calls = _viewed_calls(message, taken, ids, is_cut=reason == "length")
        choice = {
            **choice,
            "index": 0,
            "message": _viewed_message(message, calls, known, origin),
            "finish_reason": reason or ("tool_calls" if calls else "stop"),
        }
    body["choices"] = [] if choice is None else [choice]
    return answer if not isinstance(answer, Mapping) and body == sent else completion_of(body)


def completion_of(body: Mapping[str, Any]) -> "ChatCompletion":
    """The body as a `ChatCompletion`, also if some of it does not have the documented type."""
    from openai.types.chat import ChatCompletion

    try:
        return ChatCompletion.model_validate(body)
    except ValidationError:
        return ChatCompletion.construct(**body)


def text_of(content: object) -> str | None:
    """The text in a message's content: text, or parts of which some are text. None: there is none."""
    if isinstance(content, str):
        return printable_text(content)
    if isinstance(content, Mapping):
        content = [content]
    if isinstance(content, Sequence):
        texts = [text for part in content if (text := _text_of_part(part)) is not None]
        return printable_text("".join(texts)) if texts else None
    return None


def error_in_choice(body: Mapping[str, Any]) -> object:
    """What the answer's choice says of an error in its middle; None if there was none."""
    choice = _first_choice(body)
    if choice is None:
        return None
    if error := choice.get("error"):
        return error
    reason = choice.get("finish_reason")
    return f"the answer broke off: {reason}" if isinstance(reason, str) and reason.lower() in _BROKEN_OFF else None


def sent_calls(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tool calls in a provider's message, as it sent them, without what is not a call of a function."""
    calls = message.get("tool_calls") or ()
    if isinstance(calls, Mapping):
        calls = [calls]
    if not calls and isinstance(message.get("function_call"), Mapping):  # the older form, with one call
        calls = [{"function": message["function_call"]}]
    return [call for call in calls if _function_of(call) is not None] if isinstance(calls, Sequence) else []


def is_portable_id(call_id: str) -> bool:
    """Whether other providers than the one that made it take this id of a tool call."""
    return _PORTABLE_ID.fullmatch(call_id) is not None


def chosen_id(sent_id: object, taken: Collection[str]) -> str:
    """The id of a tool call: the provider's, if it can be kept and is not taken; else one of ours.

    Ours have nine letters and digits, because every provider accepts that, and some accept nothing else.
    """
    if isinstance(sent_id, str) and _PLAIN_ID.fullmatch(sent_id) and sent_id not in taken:
        return sent_id
    while (own := uuid.uuid4().hex[:9]) in taken:
        pass
    return own


def _first_choice(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, Mapping) and isinstance(first.get("message"), Mapping) else None


def _finish_reason(reason: object) -> str | None:
    """One of the reasons of chat completions; None if the answer simply ended."""
    word = reason.lower() if isinstance(reason, str) else ""
    if word in _LENGTH:
        return "length"
    if word in _FILTERED:
        return "content_filter"
    return word if word in ("stop", "tool_calls") else None


def _viewed_message(
    message: dict[str, Any], calls: list[dict[str, Any]], known: Mapping[str, Any], origin: Origin
) -> dict[str, Any]:
    refusal = text_of(message.get("refusal")) or ""
    view = {name: value for name, value in message.items() if name not in ("tool_calls", "function_call")}
    view |= {
        "role": "assistant",
        "content": text_of(message.get("content")),
        "refusal": refusal if refusal.strip() else None,
    }
    if calls:
        view["tool_calls"] = calls
    changed = {
        name: message[name]
        for name in ("content", "refusal", "function_call")
        if message.get(name) not in _NOTHING and message[name] != view.get(name)
    }
    if message.get("tool_calls") not in _NOTHING and not _same_calls(message["tool_calls"], calls):
        changed["tool_calls"] = message["tool_calls"]
    changed |= known.get("message", {})
    data = {"provider": known.get("provider", origin.provider), "api": known.get("api", origin.api)}
    view["provider_data"] = data | ({"message": changed} if changed else {})
    return view


def _viewed_calls(
    message: Mapping[str, Any], taken: Collection[str], ids: Sequence[str], *, is_cut: bool
) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    used = set(taken)
    sent = sent_calls(message)
    for position, call in enumerate(sent):
        function = _function_of(call) or {}
        call_id = ids[position] if position < len(ids) else chosen_id(call.get("id"), used)
        used.add(call_id)
        arguments = _arguments(function.get("arguments"))
        if not arguments:
            arguments = _INCOMPLETE if is_cut and position == len(sent) - 1 else "{}"
        further = {name: value for name, value in call.items() if name not in ("index", "name", "arguments")}
        viewed_function = {"name": _name(function.get("name")), "arguments": arguments}
        calls.append({**further, "id": call_id, "type": "function", "function": viewed_function})
    return calls


def _function_of(call: object) -> Mapping[str, Any] | None:
    """What a tool call says of its function; None if it is not a call of one."""
    if not isinstance(call, Mapping):
        return None
    function = call.get("function")
    if isinstance(function, Mapping):
        return function
    return call if isinstance(call.get("name"), str) else None


def _name(name: object) -> str:
    return _FOREIGN.sub("_", name.strip())[:_LONGEST_NAME] or _UNNAMED if isinstance(name, str) else _UNNAMED


def _arguments(arguments: object) -> str:
    """The arguments as text. It is not checked here that it holds a JSON object: the tool's answer says if it does not.
    Empty if there are none."""
    if arguments is None or arguments == []:  # PHP writes an empty object so
        return ""
    if not isinstance(arguments, str):
        try:
            return to_json(arguments, inf_nan_mode="constants").decode()
        except ValueError:
            return dump_anything(arguments).decode()
    text = printable_text(arguments)
    if not text.lstrip().startswith('"'):
        return text if text.strip() else ""
    try:
        within = from_json(text)  # JSON text within JSON text
    except ValueError:
        return text
    return within if isinstance(within, str) and within.lstrip().startswith("{") else text


def _same_calls(sent: object, calls: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the view of the calls shows all that was sent. Their positions, and null members, say nothing."""
    if not isinstance(sent, list) or len(sent) != len(calls):
        return False
    return all(
        isinstance(one, dict)
        and {name: value for name, value in one.items() if name != "index" and value is not None}
        == {"id": view["id"], "type": "function", "function": view["function"]}
        for one, view in zip(sent, calls, strict=True)
    )


def _text_of_part(part: object) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or part.get("type", "text") not in ("text", "output_text"):
        return None
    text = part.get("text")
    if isinstance(text, Mapping):
        text = text.get("value")
    return text if isinstance(text, str) else None


def storable(sent: dict[str, Any]) -> dict[str, Any]:
    """What was sent, without what JSON in UTF-8 cannot hold, such as half of an emoji."""
    try:
        to_json(sent, inf_nan_mode="null")
    except ValueError:
        cleaned: dict[str, Any] = load_json(dump_anything(sent))
        return cleaned
    return sent


def _dumped(answer: "ChatCompletion") -> dict[str, Any]:
    try:
        return answer.model_dump(exclude_unset=True, warnings=False)
    except UnicodeEncodeError:  # half of an emoji in the name of a member
        cleaned: dict[str, Any] = load_json(dump_anything(answer))
        return cleaned
