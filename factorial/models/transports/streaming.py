"""Assembles a streamed chat-completions answer.

It accepts what servers really send: a usage chunk without choices, tool calls without an `index`, and several tool
calls under index 0, each with its own id. A stream that stops early is detected. Called by the transports.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from factorial.models.faults import unreadable

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion, ChatCompletionChunk
    from openai.types.chat.chat_completion_chunk import ChoiceDelta, ChoiceDeltaToolCall

    from factorial.models.model import Model
    from factorial.models.request import OnChunk

__all__ = ["read_stream"]


async def read_stream(
    model: "Model", chunks: "AsyncIterator[ChatCompletionChunk]", on_chunk: "OnChunk | None"
) -> "ChatCompletion":
    """The whole answer. Every chunk is passed to `on_chunk` when it arrives.

    Raises `TruncatedResponseError` if the stream ends before the model gave its reason to finish: a partial answer is
    never returned. What `on_chunk` raises passes through.
    """
    answer = _Answer()
    async for chunk in chunks:
        try:
            answer.add(chunk)
        except (AttributeError, TypeError):
            raise unreadable(model, "a part of the stream does not have the shape of a chunk") from None
        if on_chunk is not None:
            await on_chunk(chunk)
    if answer.finish_reason is None:
        raise unreadable(model, "the stream ended before the model had finished")
    return answer.completion()


@dataclass(slots=True)
class _ToolCall:
    index: int
    id: str
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Answer:
    """What has arrived so far of the first choice. Only one choice is requested."""

    head: dict[str, Any] = field(default_factory=dict)
    content: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    tool_calls: list[_ToolCall] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Any = None

    def add(self, chunk: "ChatCompletionChunk") -> None:
        if not self.head:
            self.head = {"id": chunk.id, "created": chunk.created, "model": chunk.model}
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices or ():
            if not choice.index:
                self._add_delta(choice.delta)
                self.finish_reason = choice.finish_reason or self.finish_reason

    def _add_delta(self, delta: "ChoiceDelta | None") -> None:
        if delta is None:
            return
        if delta.content:
            self.content.append(delta.content)
        if delta.refusal:
            self.refusal.append(delta.refusal)
        for position, piece in enumerate(delta.tool_calls or ()):
            call = self._call_of(piece, position)
            call.extra.update(piece.model_extra or {})
            if piece.function:
                call.name = call.name or piece.function.name or ""
                call.arguments.append(piece.function.arguments or "")

    def _call_of(self, piece: "ChoiceDeltaToolCall", position: int) -> _ToolCall:
        """The call that `piece` belongs to. A new id starts another call, even under an index that is taken."""
        index = position if getattr(piece, "index", None) is None else piece.index
        call = next((call for call in reversed(self.tool_calls) if call.index == index), None)
        if call is None or (piece.id and piece.id != call.id):
            call = _ToolCall(index, piece.id or f"call_{len(self.tool_calls)}")
            self.tool_calls.append(call)
        return call

    def completion(self) -> "ChatCompletion":
        from openai.types.chat import ChatCompletion

        tool_calls = [
            {
                **call.extra,
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": "".join(call.arguments)},
            }
            for call in self.tool_calls
        ]
        message = {
            "role": "assistant",
            "content": "".join(self.content) if self.content or not tool_calls else None,
            "refusal": "".join(self.refusal) or None,
            "tool_calls": tool_calls or None,
        }
        # The SDK itself reads answers with `construct`: it is lenient if a provider adds or leaves out a member.
        return ChatCompletion.construct(
            **self.head,
            object="chat.completion",
            choices=[{"index": 0, "finish_reason": self.finish_reason, "message": message, "logprobs": None}],
            usage=self.usage.model_dump() if self.usage else None,
        )
