"""The transport over the openai SDK, for every server that speaks chat completions.

The SDK walks every message in Python before it sends them (18 ms of CPU for a conversation of 92 messages, measured
with openai 3.52). `client.post`, which the SDK documents for other endpoints, takes bytes as they are (1.4 ms), with
the same authentication, errors and response types. So the request is serialised in `body`.

The SDK's own retries are off: `complete` has the only retry policy. `openai` is imported with the first call.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from factorial._core.loop import close_with_loop
from factorial._core.redact import remember_secret
from factorial.errors import ModelRefusedError
from factorial.models.faults import explain, unreadable, unusable_key
from factorial.models.transports.body import request_body
from factorial.models.transports.received import checked_body, chunks_in, is_event_stream
from factorial.models.transports.streaming import as_chunks, read_stream
from factorial.models.view import viewed

if TYPE_CHECKING:
    from openai import AsyncOpenAI, AsyncStream
    from openai._types import RequestOptions
    from openai.types.chat import ChatCompletion

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
        if unusable := unusable_key(model):
            raise ModelRefusedError(unusable)
        if request.stream:
            return await _stream(model, request, on_chunk)
        return await _ask(model, request)


async def close_clients() -> None:
    """Close the running event loop's connections to providers. Without a call, they are closed with the loop."""
    for client in _clients.pop(asyncio.get_running_loop(), {}).values():
        await client.close()


async def _ask(model: "Model", request: "ModelRequest") -> "ChatCompletion":
    import openai

    client, path = await _client(model.provider)
    body = request_body(model, request)
    try:
        # As text: the SDK's types would lose what they do not know, and it believes what the server says of the type.
        answer = await client.post(path, cast_to=str, content=body, options=_options(request))
    except (openai.OpenAIError, ValueError) as error:
        raise explain(error, model) from None
    if is_event_stream(answer):
        return await read_stream(model, chunks_in(model, answer), None, request.call_ids)
    return viewed(checked_body(model, answer), model.origin, request.call_ids)


async def _stream(model: "Model", request: "ModelRequest", on_chunk: "OnChunk | None") -> "ChatCompletion":
    import openai
    from openai import AsyncStream

    client, path = await _client(model.provider)
    body = request_body(model, request)
    try:
        stream = await client.post(
            path,
            cast_to=object,
            content=body,
            options=_options(request),
            stream=True,
            stream_cls=AsyncStream[object],
        )
    except (openai.OpenAIError, ValueError) as error:
        raise explain(error, model) from None
    async with stream:
        if whole := await _whole_body(model, stream):
            chunks = as_chunks(checked_body(model, whole))
        else:
            chunks = _chunks(model, stream)
        return await read_stream(model, chunks, on_chunk, request.call_ids)


async def _whole_body(model: "Model", stream: "AsyncStream[object]") -> str:
    """The body of a response that is not a stream although one was asked for; empty if it is one."""
    import httpx2  # what the SDK raises here

    kind = stream.response.headers.get("content-type", "").lower()
    if "json" not in kind and "html" not in kind:
        return ""
    try:
        await stream.response.aread()
    except httpx2.HTTPError as error:
        raise unreadable(model, error) from None
    text: str = stream.response.text
    return "" if is_event_stream(text) else text


async def _chunks(model: "Model", stream: "AsyncStream[object]") -> "AsyncIterator[Mapping[str, Any]]":
    """The stream's chunks. Any error after the first chunk becomes a `TruncatedResponseError`."""
    import openai

    started = False
    try:
        async for chunk in stream:
            if not isinstance(chunk, dict):
                raise unreadable(model, "a part of the stream is not a chunk")
            started = True
            yield chunk
    except (openai.OpenAIError, ValueError) as error:
        translated = explain(error, model)
        raise (unreadable(model, translated) if started else translated) from None


async def _client(provider: "Provider") -> "tuple[AsyncOpenAI, str]":
    """The client for a provider, and the path of its requests."""
    from openai import AsyncOpenAI

    clients = _clients.get(asyncio.get_running_loop())
    if clients is None:
        clients = _clients[asyncio.get_running_loop()] = {}
        await close_with_loop(close_clients)
    address, _, query = provider.url.partition("?")
    identity = (address, provider.api_key or "")
    if identity not in clients:
        remember_secret(provider.api_key)
        clients[identity] = AsyncOpenAI(
            base_url=address,
            api_key=provider.api_key or "none",  # the SDK requires a key, also for a server that needs none
            max_retries=0,
        )
    return clients[identity], f"{_PATH}?{query}" if query else _PATH


def _options(request: "ModelRequest") -> "RequestOptions":
    from openai import Timeout

    return {
        "headers": {"Content-Type": "application/json"},
        "timeout": Timeout(request.timeout, connect=min(_CONNECT_TIMEOUT, request.timeout)),
    }
