"""What a request leaves out so that it stays within `context_window_limit`. Pure: no input or output.

A context window holds the request and its answer. What counts is the instructions, the messages, the JSON of the tools,
and `max_completion_tokens` if that is set, in tokens as `factorial.models.tokens` estimates them (an image counts as
`IMAGE_TOKENS`). The oldest parts of a request that is too long are left out:

    always sent    the instructions; the query; the model's newest answer with its tool results, and what follows it
    left out       first, earlier conversations, each user message together with its answers;
                   then older answers of the run, each together with its tool results;
                   last, if that is not enough, the user's older messages (steering)

So a tool call is always sent with its results. Up to an eighth of the limit more than necessary is left out at once, so
that requests have the same beginning for some turns and hit the provider's prompt cache. Only the request is shortened;
the stored conversation is complete.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factorial.errors import ContextWindowError
from factorial.models import count_tokens

__all__ = ["Fitted", "fit_window"]

_Messages = Sequence[Mapping[str, Any]]
_INSTRUCTIONS = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Fitted:
    """A request's messages, none of them changed, in their order."""

    messages: list[Any]
    tokens: int
    """What the request and its answer take at the most, as it is sent."""
    left_out: int
    """How many messages it goes without."""


def fit_window(
    messages: _Messages,
    *,
    query: str,
    limit: int,
    tools: _Messages = (),
    answer: int = 0,
    sizes: Sequence[int] | None = None,
) -> Fitted:
    """The messages that go with `tools` into a window of `limit` tokens, of which `answer` are for the answer.

    `query` is the content of the user message that began the run. `sizes` are the tokens of each message as it is sent;
    by default the messages are sent as they are. Raises `ContextWindowError` if what has to stay does
    not fit.
    """
    sizes = [count_tokens(message) for message in messages] if sizes is None else sizes
    total = sum(sizes) + count_tokens(tools) + answer
    excess = total - limit
    if excess <= 0:
        return Fitted(list(messages), total, 0)

    eighth = max(1, limit // 8)
    enough = -(-excess // eighth) * eighth
    gone: set[int] = set()
    freed = 0
    expendable = _Expendable(messages, query)
    for part in expendable.exchanges():
        size = sum(sizes[index] for index in part)
        if freed >= excess and freed + size > enough:
            break
        gone.update(part)
        freed += size
    for part in expendable.remarks():
        if freed >= excess:
            break
        gone.update(part)
        freed += sum(sizes[index] for index in part)
    if freed < excess:
        raise ContextWindowError(
            f"the request does not fit into {limit} tokens: without all that may be left out it still takes about "
            f"{total - freed} (the answer {answer}, the tools {count_tokens(tools)}, the instructions, the query and "
            "the newest exchange the rest): raise context_window_limit, or have instructions, tools and their results "
            "say less"
        )
    return Fitted([message for index, message in enumerate(messages) if index not in gone], total - freed, len(gone))


class _Expendable:
    """Which messages of a conversation may be left out, in parts that go together. Messages are given by index."""

    def __init__(self, messages: _Messages, query: str) -> None:
        self._messages = messages
        roles = [message.get("role") for message in messages]
        self._opening = next((index for index, role in enumerate(roles) if role not in _INSTRUCTIONS), len(roles))
        users = [index for index, role in enumerate(roles) if role == "user"]
        asked = [index for index in users if messages[index].get("content") == query]
        self._query = (asked[-1:] or users[:1] or [self._opening - 1])[0]
        answers = [index for index, role in enumerate(roles) if role == "assistant" and index > self._query]
        self._newest = answers[-1] if answers else self._query + 1

    def exchanges(self) -> Iterator[list[int]]:
        """Earlier conversations, then the older answers of the run with their tool results."""
        yield from self._earlier()
        yield from self._parts(assistant=True)

    def remarks(self) -> Iterator[list[int]]:
        """What the user said after the query and before the newest answer, message by message."""
        yield from self._parts(assistant=False)

    def _earlier(self) -> Iterator[list[int]]:
        part: list[int] = []
        for index in range(self._opening, self._query):
            if self._messages[index].get("role") == "user" and part:
                yield part
                part = []
            part.append(index)
        if part:
            yield part

    def _parts(self, *, assistant: bool) -> list[list[int]]:
        """The parts between the query and the newest answer: those the model began, or the others."""
        parts: list[list[int]] = []
        part_of_call: dict[str, list[int]] = {}
        for index in range(self._query + 1, len(self._messages)):
            message = self._messages[index]
            if message.get("role") == "tool" and parts:
                part_of_call.get(message.get("tool_call_id", ""), parts[-1]).append(index)
                continue
            part = [index]
            parts.append(part)
            for call in message.get("tool_calls") or ():
                part_of_call[call.get("id", "")] = part
        return [
            part
            for part in parts
            if part[0] < self._newest and (self._messages[part[0]].get("role") == "assistant") is assistant
        ]
