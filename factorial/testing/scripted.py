"""A model that plays a script. It is not a language model: it returns the replies that you wrote.

    model = ScriptedModel([call("search", query="cats"), say("Cats sleep a lot.")])

The conversation alone selects the reply: its number is the number of assistant messages so far. So the model has no
state. Any process may take the next turn, and a repeated turn gets the same reply. Messages that a request leaves out
to stay within `context_window_limit` count, too. A list of replies is for one conversation; for more, pass a function
of the messages. It gets the messages that are sent.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from factorial._core.json import dump_json
from factorial.errors import ConfigError, ModelRefusedError
from factorial.models.conversation import sendable
from factorial.models.model import Model, Transport
from factorial.models.provider import Provider
from factorial.models.request import ModelRequest, OnChunk
from factorial.models.transports.streaming import read_stream

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

__all__ = ["Reply", "ScriptedModel", "call", "calls", "say"]

_Messages = Sequence[Mapping[str, Any]]

_PROVIDER = Provider("scripted (not a language model)", "http://scripted.invalid", api_key_env=None)


@dataclass(frozen=True)
class Reply:
    """One reply of the script. Made by `say`, `call` and `calls`."""

    text: str | None = None
    tool_calls: tuple[tuple[str, str], ...] = ()
    """The name and the arguments (JSON text) of each call."""


def say(text: str) -> Reply:
    """A reply with text."""
    return Reply(text)


def call(tool: str, /, **arguments: Any) -> Reply:
    """A reply that calls the tool named `tool`. Raises `PydanticSerializationError` if an argument is not JSON."""
    return Reply(tool_calls=((tool, dump_json(arguments).decode()),))


def calls(*replies: Reply) -> Reply:
    """A reply with several tool calls: `calls(call("a"), call("b", x=1))`. Texts of the replies are joined."""
    text = " ".join(reply.text for reply in replies if reply.text) or None
    return Reply(text, tuple(one for reply in replies for one in reply.tool_calls))


_Script = Callable[[_Messages], Reply | str]
_Element = Reply | str | _Script


class ScriptedModel(Model):
    """A model that plays a script. It is not a language model, and needs no key.

    Parameters:
        replies: a list of replies, or a function of the messages that returns one. An element of the list may be such a
            function, too. It may raise a `ModelError`, to test how an agent behaves when a call fails. A `str` is a
            reply with that text.
        delay: seconds that each answer takes.
        name: the model's name, in events and logs.
        context_window: tokens.

    Raises `ConfigError` for anything else. A call raises `ModelRefusedError` if the list has no more replies.
    """

    replies: Sequence[_Element] | _Script
    delay: float

    def __init__(
        self,
        replies: Sequence[_Element] | _Script,
        *,
        delay: float = 0.0,
        name: str = "scripted",
        context_window: int = 128_000,
    ) -> None:
        if isinstance(replies, str | Reply) or not (callable(replies) or isinstance(replies, Sequence)):
            raise ConfigError(
                f"ScriptedModel: {replies!r} is not a script: pass a list such as [say('hello')], "
                "or a function of the messages"
            )
        for position, element in enumerate(() if callable(replies) else replies):
            if not isinstance(element, str | Reply) and not callable(element):
                raise ConfigError(
                    f"ScriptedModel: element {position} is {element!r}: use say(...), call(...), calls(...), a str, or "
                    "a function of the messages"
                )
        super().__init__(name, _PROVIDER, name, context_window)
        object.__setattr__(self, "replies", replies)  # a Model is frozen
        object.__setattr__(self, "delay", delay)

    # Two scripts with the same name are two models.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def transport(self) -> Transport:
        """The transport that plays the script."""
        return _ScriptedTransport(self)

    def reply_to(self, request: ModelRequest) -> tuple[int, Reply]:
        """The number of the next reply in this conversation, from 0, and the reply."""
        number = request.answers
        if number is None:
            number = sum(message.get("role") == "assistant" for message in request.messages)
        if callable(self.replies):
            chosen: _Element = self.replies
        elif number < len(self.replies):
            chosen = self.replies[number]
        else:
            raise ModelRefusedError(
                f"{self.name}: the script has {len(self.replies)} replies, and the conversation asks for number "
                f"{number + 1}: add one, or let the agent end with the last (a reply without tool calls)"
            )
        reply = chosen(request.messages) if callable(chosen) else chosen
        if not isinstance(reply, str | Reply):
            raise ModelRefusedError(f"{self.name}: the script's function returned {reply!r}: return a Reply or a str")
        return number, say(reply) if isinstance(reply, str) else reply


@dataclass(frozen=True)
class _ScriptedTransport:
    script: ScriptedModel

    async def create(self, model: Model, request: ModelRequest, on_chunk: OnChunk | None) -> "ChatCompletion":
        """The reply, after the delay, or in chunks during the delay if the request is for a stream."""
        number, reply = self.script.reply_to(replace(request, messages=sendable(request.messages, model.provider)))
        chunks = _chunks(model.name, number, reply)
        if not request.stream:
            await asyncio.sleep(self.script.delay)
            return await read_stream(model, _paced(chunks, 0.0), None, request.call_ids)
        return await read_stream(model, _paced(chunks, self.script.delay), on_chunk, request.call_ids)


async def _paced(chunks: list[dict[str, Any]], delay: float) -> AsyncIterator[dict[str, Any]]:
    for chunk in chunks:
        await asyncio.sleep(delay / len(chunks))
        yield chunk


def _chunks(model: str, number: int, reply: Reply) -> list[dict[str, Any]]:
    """The reply as a server would stream it. Ids are made of the numbers of the reply and the call."""
    deltas: list[dict[str, Any]] = [
        {"role": "assistant"} if reply.text is None else {"role": "assistant", "content": ""}
    ]
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
    return [{**head, "choices": [choice], "usage": usage if choice is choices[-1] else None} for choice in choices]


def _pieces(text: str) -> list[str]:
    """`text`, split after each space. Joined, the pieces are `text` again."""
    return [piece for piece in text.replace(" ", " \0").split("\0") if piece]
