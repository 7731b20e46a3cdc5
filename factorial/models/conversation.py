"""The conversation as it is sent. The stored one is not changed.

    ready       what no provider takes is put right: a tool call that nothing answers, a result that no call asked for,
                an answer as the last message
    sendable    for one provider: without `provider_data`, and with what this provider wants to see again

What a provider sent beyond the members of chat completions goes back to the provider that sent it, and only if it is
named in the provider's `echo`. Ids of tool calls that other providers would reject are replaced for these.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from factorial._core.conversation import answered, call_ids, role_of
from factorial.models.answer import NO_ANSWER
from factorial.models.provider import Provider
from factorial.models.tokens import count_tokens
from factorial.models.view import is_portable_id, sent_calls

__all__ = ["plain", "ready", "sendable", "sent_tokens", "without_unclaimed"]

_GO_ON = {"role": "user", "content": "Continue."}
_NINE = re.compile(r"[A-Za-z0-9]{9}")
"""The only form of an id that Mistral accepts."""


def ready(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The conversation, with an answer for each tool call, and with something to answer at its end.

    A result that answers no call of the message before it is sent as a user's message: an agent may await results by
    ids of its own (`TurnCompletion.pending_tool_call_ids`), and ask a model later.

    An agent that takes a further turn after an answer in words leaves that answer as the last message. Some providers
    reject this, and others would continue the sentence.
    """
    complete = _without_strays(answered(messages))  # type: ignore[arg-type]  # it reads them only
    roles = map(role_of, reversed(complete))
    last = next((role for role in roles if role not in ("system", "developer")), None)
    return [*complete, dict(_GO_ON)] if last == "assistant" else complete


def _without_strays(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, with each tool message that answers no open call as a user's message."""
    open_calls: set[str] = set()
    for position, message in enumerate(messages):
        if role_of(message) != "tool":
            open_calls = call_ids((message,))
        elif message.get("tool_call_id") in open_calls:
            open_calls.discard(message["tool_call_id"])
        else:
            messages[position] = {"role": "user", "content": message.get("content") or ""}
    return messages


def sendable(messages: Sequence[Mapping[str, Any]], provider: Provider) -> list[Mapping[str, Any]]:
    """The messages as `provider` gets them, one for each."""
    renamed: dict[str, str] = {}
    sent: list[Mapping[str, Any]] = []
    for message in messages:
        role = role_of(message)
        if role == "assistant":
            message = _sendable_answer(message, provider, renamed)
        elif renamed and role == "tool" and message.get("tool_call_id") in renamed:
            message = {**message, "tool_call_id": renamed[message["tool_call_id"]]}
        sent.append(message)
    return sent


def plain(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The conversation for a client of the user's own, which sends it as it is: without what is kept for providers."""
    return [_without_data(message) for message in ready(messages)]


def without_unclaimed(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, without what is kept of answers whose provider is not known. The agent's own code asked for these,
    and will send the messages as they are; nobody will see it again."""
    return [
        _without_data(message) if (_data_of(message) or {"provider": ""}).get("provider") is None else message
        for message in messages
    ]


def _data_of(message: Any) -> dict[str, Any]:
    data = message.get("provider_data") if isinstance(message, dict) else None
    return data if isinstance(data, dict) else {}


def _without_data(message: Any) -> Any:
    if not isinstance(message, dict) or "provider_data" not in message:
        return message
    return {name: value for name, value in message.items() if name != "provider_data"}


def sent_tokens(messages: Sequence[Mapping[str, Any]], providers: Iterable[Provider]) -> list[int]:
    """An upper estimate of the tokens of each message as it is sent, to whichever of `providers` gets it."""
    counted = [[count_tokens(message) for message in sendable(messages, provider)] for provider in providers]
    return [max(counts) for counts in zip(*counted, strict=True)]


def _sendable_answer(message: Mapping[str, Any], provider: Provider, renamed: dict[str, str]) -> Mapping[str, Any]:
    calls, data = message.get("tool_calls") or (), _data_of(message)
    is_own = (data.get("provider"), data.get("api")) == (provider.name, provider.api)
    foreign = () if is_own else [call["id"] for call in calls if not _takes(provider, call.get("id"))]
    if not data and not foreign and (calls or message.get("content")):
        return message
    answer = dict(_without_data(message))
    if is_own:
        original = data.get("message", {})
        answer |= {name: original[name] for name in provider.echo if name in original and name != "tool_calls"}
        if calls and "tool_calls" in original:
            answer["tool_calls"] = _with_extras(calls, sent_calls(original), provider.echo)
    if foreign:
        renamed |= {call_id: sha256(call_id.encode()).hexdigest()[:9] for call_id in foreign}
        answer["tool_calls"] = [{**call, "id": renamed.get(call["id"], call["id"])} for call in calls]
    if not calls and not answer.get("content"):
        answer["content"] = answer.pop("refusal", None) or NO_ANSWER
    return answer


def _with_extras(
    calls: Sequence[Mapping[str, Any]], originals: Sequence[Mapping[str, Any]], echo: frozenset[str]
) -> list[dict[str, Any]]:
    """The calls, with those members of the original ones that the provider wants to see again."""
    if len(originals) != len(calls):
        return [dict(call) for call in calls]
    return [
        {**call, **{name: original[name] for name in echo if name in original and name not in call}}
        for call, original in zip(calls, originals, strict=True)
    ]


def _takes(provider: Provider, call_id: object) -> bool:
    """Whether `provider` takes an id that another provider made. What is not text is not an id, and left alone."""
    if not isinstance(call_id, str):
        return True
    if provider.name.lower().startswith("mistral"):
        return _NINE.fullmatch(call_id) is not None
    return is_portable_id(call_id)
