"""Reads a streamed chat-completions answer, from plain chunks. A stream that stops early is detected.

A chunk is passed on as it arrived, except for its tool calls: they have the ids and numbers of the whole answer.
Called by the transports.
"""

from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from factorial.models.faults import unreadable
from factorial.models.transports.pieces import CallPieces, merged
from factorial.models.view import error_in_choice, storable, viewed

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

    from factorial.models.model import Model
    from factorial.models.request import OnChunk

__all__ = ["as_chunks", "read_stream"]


async def read_stream(
    model: "Model",
    chunks: AsyncIterator[Mapping[str, Any]],
    on_chunk: "OnChunk | None",
    taken: Collection[str] = (),
) -> "ChatCompletion":
    """The whole answer. Every chunk is passed to `on_chunk` when it arrives.

    Raises `TruncatedResponseError` if the stream ends before the model gave its reason to finish: a partial answer is
    never returned. What `on_chunk` raises passes through.
    """
    from openai.types.chat import ChatCompletionChunk

    answer = _Answer(CallPieces(taken))
    async for chunk in chunks:
        try:
            shown = answer.add(storable(dict(chunk)))
        except (AttributeError, TypeError, ValueError):
            raise unreadable(model, "a part of the stream does not have the shape of a chunk") from None
        if answer.error is not None:
            raise unreadable(model, answer.error)
        if on_chunk is not None:
            await on_chunk(ChatCompletionChunk.construct(**shown))
    if answer.finish_reason is None:
        raise unreadable(model, "the stream ended before the model had finished")
    return viewed(answer.body(), model.origin, taken, answer.calls.ids)


async def as_chunks(body: Mapping[str, Any]) -> AsyncIterator[Mapping[str, Any]]:
    """The chunk in which a whole answer would have been streamed, for a server that does not stream."""
    choice = body["choices"][0]
    yield {
        **body,
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": choice["message"], "finish_reason": choice.get("finish_reason") or "stop"}],
    }


@dataclass(slots=True)
class _Answer:
    """What has arrived so far of the first choice. Only one choice is requested."""

    calls: CallPieces
    head: dict[str, Any] = field(default_factory=dict)
    message: dict[str, Any] = field(default_factory=dict)
    finish_reason: Any = None
    error: object = None
    usage: Any = None

    def add(self, chunk: Mapping[str, Any]) -> Mapping[str, Any]:
        """Add what has arrived, and return it as it is passed on."""
        if not self.head:
            self.head = {name: value for name, value in chunk.items() if name not in ("object", "choices", "usage")}
        self.usage = chunk.get("usage") or self.usage
        choices = [self._add_choice(choice) for choice in chunk.get("choices") or ()]
        return {**chunk, "choices": choices}

    def _add_choice(self, choice: Mapping[str, Any]) -> Mapping[str, Any]:
        if choice.get("index"):
            return choice
        delta = choice.get("delta")
        if delta is not None:
            delta = self._add_delta(delta)
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        self.error = self.error or error_in_choice({"choices": [{**choice, "message": {}}]})
        return {**choice, "delta": delta}

    def _add_delta(self, delta: Mapping[str, Any]) -> Mapping[str, Any]:
        for name, value in delta.items():
            if name not in ("role", "tool_calls") and value is not None:
                self.message[name] = merged(self.message.get(name), value)
        if not delta.get("tool_calls"):
            return delta
        return {**delta, "tool_calls": self.calls.add(delta["tool_calls"])}

    def body(self) -> dict[str, Any]:
        """The answer as a server that does not stream would have sent it."""
        calls = self.calls.whole()
        message = {"role": "assistant", "content": None, **self.message} | ({"tool_calls": calls} if calls else {})
        choice = {"index": 0, "finish_reason": self.finish_reason, "message": message, "logprobs": None}
        return {**self.head, "choices": [choice], "usage": self.usage}
