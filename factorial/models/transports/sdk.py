"""The transport over the openai SDK, for every server that speaks chat completions.

The SDK walks every message in Python before it sends them (18 ms of CPU for a conversation of 92 messages, measured
with openai 3.52). `client.post`, which the SDK documents for other endpoints, takes bytes as they are (1.4 ms), with
the same authentication, errors and response types. So the request is serialised in `body`.

The SDK's own retries are off: `complete` has the only retry policy. `openai` is imported with the first call.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from factorial._core.loop import close_with_loop
from factorial._core.redact import remember_secret
from factorial.errors import ModelRefusedError
from factorial.models.faults import explain, missing_key, unreadable
from factorial.models.transports.body import request_body
from factorial.models.transports.streaming import read_stream

if TYPE_CHECKING:
    from openai import AsyncOpenAI, AsyncStream
    from openai._types import RequestOptions
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    from factorial.models.model import Model
    from factorial.models.provider import Provider
    from factorial.models.request import ModelRequest, OnChunk

__all__ = ["OpenAITransport", "close_clients"]

_CONNECT_TIMEOUT = 10.0
"""Seconds."""
_PATH = "/chat/completions"

# One client for each event loop, address and key: connections cannot be shared between event loops, and the
# environment's key or address may change between two calls.
_clients: "WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], AsyncOpenAI]]" = WeakKeyDictionary()


class OpenAITransport:
    """Carries requests to OpenAI-compatible servers."""

    async def create(self, model: "Model", request: "ModelRequest", on_chunk: "OnChunk | None") -> "ChatCompletion":
        """The model's whole answer. Raises a `ModelError`; `ContextError` if the conversation does not serialise."""
        if model.provider.lacks_key:
            raise ModelRefusedError(missing_key(model))
        if request.stream:
            return await _stream(model, request, on_chunk)
        return await _ask(model, request)


async def close_clients() -> None:
    """Close the running event loop's connections to providers. Without a call, they are closed with the loop."""
    for client in _clients.pop(asyncio.get_running_loop(), {}).values():
        await client.close()


async def _ask(model: "Model", request: "ModelRequest") -> "ChatCompletion":
    import openai
    from openai.types.chat import ChatCompletion

    client = await _client(model.provider)
    body = request_body(model, request)
    try:
        completion = await client.post(_PATH, cast_to=ChatCompletion, content=body, options=_options(request))
    except (openai.OpenAIError, ValueError) as error:  # ValueError: the answer is not JSON
        raise explain(error, model) from None
    choices = getattr(completion, "choices", None)
    if not (isinstance(choices, list) and choices and getattr(choices[0], "message", None)):
        raise unreadable(model, "it holds no message")
    return completion


async def _stream(model: "Model", request: "ModelRequest", on_chunk: "OnChunk | None") -> "ChatCompletion":
    import openai
    from openai import AsyncStream
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    client = await _client(model.provider)
    body = request_body(model, request)
    try:
        stream = await client.post(
            _PATH,
            cast_to=ChatCompletion,
            content=body,
            options=_options(request),
            stream=True,
            stream_cls=AsyncStream[ChatCompletionChunk],
        )
    except (openai.OpenAIError, ValueError) as error:
        raise explain(error, model) from None
    async with stream:
        return await read_stream(model, _chunks(model, stream), on_chunk)


async def _chunks(model: "Model", stream: "AsyncStream[ChatCompletionChunk]") -> "AsyncIterator[ChatCompletionChunk]":
    """The stream's chunks. Any error after the first chunk becomes a `TruncatedResponseError`."""
    import openai
    from openai.types.chat import ChatCompletionChunk

    started = False
    try:
        async for chunk in stream:
            if not isinstance(chunk, ChatCompletionChunk):
                raise unreadable(model, "a part of the stream is not a chunk")
            started = True
            yield chunk
    except (openai.OpenAIError, ValueError) as error:
        translated = explain(error, model)
        raise (unreadable(model, translated) if started else translated) from None


async def _client(provider: "Provider") -> "AsyncOpenAI":
    from openai import AsyncOpenAI

    clients = _clients.get(asyncio.get_running_loop())
    if clients is None:
        clients = _clients[asyncio.get_running_loop()] = {}
        await close_with_loop(close_clients)
    identity = (provider.url, provider.api_key or "")
    if identity not in clients:
        remember_secret(provider.api_key)
        clients[identity] = AsyncOpenAI(
            base_url=provider.url,
            api_key=provider.api_key or "none",  # the SDK requires a key, also for a server that needs none
            max_retries=0,
        )
    return clients[identity]


def _options(request: "ModelRequest") -> "RequestOptions":
    from openai import Timeout

    return {
        "headers": {"Content-Type": "application/json"},
        "timeout": Timeout(request.timeout, connect=min(_CONNECT_TIMEOUT, request.timeout)),
    }
