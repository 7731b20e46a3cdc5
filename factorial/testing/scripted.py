"""A model that plays a script. It is not a language model: it understands nothing and says what you wrote.

    model = ScriptedModel([call("search", query="cats"), say("Cats sleep a lot.")])

The n-th reply is chosen by the conversation alone (as many assistant messages as it holds, so many replies are
over), so the model has no state: any process may take the next turn, and a turn that is taken again gets the
same reply. What a request leaves out to stay within `context_window_limit` counts, too; a function of the messages
sees those that are sent. A reply list is per conversation; for more, pass a function.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from factorial._core.json import dump_json
from factorial.errors import ConfigError, ModelRefusedError
from factorial.models.model import Model, Transport
from factorial.models.provider import Provider
from factorial.models.request import ModelRequest, OnChunk
from factorial.models.transports.streaming import read_stream

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

__all__ = ["Reply", "ScriptedModel", "call", "calls", "say"]

Messages = Sequence[Mapping[str, Any]]

_PROVIDER = Provider("scripted (not a language model)", "http://scripted.invalid", api_key_env=None)


@dataclass(frozen=True)
class Reply:
    """What the script says at one point. Made by `say`, `call` and `calls`."""

    text: str | None = None
    tool_calls: tuple[tuple[str, str], ...] = ()
    """Name and arguments (JSON text) of each call."""


def say(text: str) -> Reply:
    """An answer in words."""
    return Reply(text)


def call(tool: str, /, **arguments: Any) -> Reply:
    """A call of `tool`."""
    return Reply(tool_calls=((tool, dump_json(arguments).decode()),))


def calls(*replies: Reply) -> Reply:
    """Several tool calls in one answer: `calls(call("a"), call("b", x=1))`. What is said comes along."""
    text = " ".join(reply.text for reply in replies if reply.text) or None
    return Reply(text, tuple(one for reply in replies for one in reply.tool_calls))


class ScriptedModel(Model):
    """Plays `replies` (a list, or a function of the messages). It is not a language model, and needs no key.

    `delay`: seconds that each answer takes. A function may raise a `ModelError`, to rehearse a bad day.
    """

    replies: Sequence[Reply | str] | Callable[[Messages], Reply | str]
    delay: float

    def __init__(
        self,
        replies: Sequence[Reply | str] | Callable[[Messages], Reply | str],
        *,
        delay: float = 0.0,
        name: str = "scripted",
        context_window: int = 128_000,
    ) -> None:
        if isinstance(replies, str | Reply) or not (callable(replies) or isinstance(replies, Sequence)):
            raise ConfigError(
                f"ScriptedModel: {replies!r} is no script: pass a list such as [say('hello')], "
                "or a function of the messages"
            )
        super().__init__(name, _PROVIDER, name, context_window)
        object.__setattr__(self, "replies", replies)  # a Model is frozen
        object.__setattr__(self, "delay", delay)

    __eq__ = object.__eq__  # two scripts of one name are two models
    __hash__ = object.__hash__

    def transport(self) -> Transport:
        """The script itself."""
        return _ScriptedTransport(self)

    def reply_to(self, request: ModelRequest) -> tuple[int, Reply]:
        """The number of the reply that is due in this conversation, from 0, and the reply."""
        number = request.answers
        if number is None:
            number = sum(message.get("role") == "assistant" for message in request.messages)
        if callable(self.replies):
            reply = self.replies(request.messages)
        elif number < len(self.replies):
            reply = self.replies[number]
        else:
            raise ModelRefusedError(
                f"{self.name}: the script has {len(self.replies)} replies, and the conversation asks for number "
                f"{number + 1}: add one, or let the agent end with the last (a reply without tool calls)"
            )
        return number, say(reply) if isinstance(reply, str) else reply


@dataclass(frozen=True)
class _ScriptedTransport:
    script: ScriptedModel

    async def create(self, model: Model, request: ModelRequest, on_chunk: OnChunk | None) -> "ChatCompletion":
        """The reply, after the delay; in pieces if the request asks for them."""
        number, reply = self.script.reply_to(request)
        chunks = _chunks(model.name, number, reply)
        if not request.stream:
            await asyncio.sleep(self.script.delay)
            return await read_stream(model, _paced(chunks, 0.0), None)
        return await read_stream(model, _paced(chunks, self.script.delay), on_chunk)


async def _paced(chunks: "list[ChatCompletionChunk]", delay: float) -> "AsyncIterator[ChatCompletionChunk]":
    for chunk in chunks:
        await asyncio.sleep(delay / len(chunks))
        yield chunk


def _chunks(model: str, number: int, reply: Reply) -> "list[ChatCompletionChunk]":
    """The reply as a server would stream it. Ids tell which reply and call it is, and are the same every time."""
    from openai.types.chat import ChatCompletionChunk

    deltas: list[dict[str, Any]] = [{"role": "assistant"}]
    deltas += [{"content": piece} for piece in _pieces(reply.text or "")]
    for index, (name, arguments) in enumerate(reply.tool_calls):
        identity = {"index": index, "id": f"call_{number}_{index}", "type": "function"}
        deltas.append({"tool_calls": [{**identity, "function": {"name": name, "arguments": ""}}]})
        deltas += [{"tool_calls": [{"index": index, "function": {"arguments": piece}}]} for piece in _pieces(arguments)]
    finish = "tool_calls" if reply.tool_calls else "stop"
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    tokens = len(deltas) - 1
    usage = {"prompt_tokens": 0, "completion_tokens": tokens, "total_tokens": tokens}
    head: dict[str, Any] = {
        "id": f"chatcmpl-scripted-{number}",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": model,
    }
    return [
        ChatCompletionChunk.construct(**head, choices=[choice], usage=usage if choice is choices[-1] else None)
        for choice in choices
    ]


def _pieces(text: str) -> list[str]:
    """`text` cut after each space: they join to the same text."""
    return [piece for piece in text.replace(" ", " \0").split("\0") if piece]
