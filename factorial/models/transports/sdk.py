"""The transport to real providers: the openai SDK, for any server that speaks its protocol.

The SDK walks every message in Python before it sends them (18 ms of CPU for a conversation of 92, measured
with openai 3.52); its documented door for other endpoints, `client.post`, takes bytes as they are (1.4 ms),
with the same authentication, errors and response types. So the request is serialised here.

The SDK's own retries are off: there is one policy, in `complete`. `openai` is imported with the first call.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from pydantic_core import PydanticSerializationError

from factorial._core.json import dump_json
from factorial._core.loop import close_with_loop
from factorial._core.redact import remember_secret
from factorial.errors import ContextError, ModelRefusedError
from factorial.models.faults import explain, missing_key, unreadable
from factorial.models.transports.streaming import read_stream

if TYPE_CHECKING:
    from openai import AsyncOpenAI, AsyncStream
    from openai._types import RequestOptions
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    from factorial.models.model import Model, Provider
    from factorial.models.request import ModelRequest, OnChunk

__all__ = ["OpenAITransport", "close_clients", "request_body"]

_CONNECT_TIMEOUT = 10.0
_PATH = "/chat/completions"

# A client's connections belong to one event loop; a key or an address may change between two calls.
_clients: "WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], AsyncOpenAI]]" = WeakKeyDictionary()


class OpenAITransport:
    """Carries requests to OpenAI-compatible servers."""

    async def create(self, model: "Model", request: "ModelRequest", on_chunk: "OnChunk | None") -> "ChatCompletion":
        """The model's whole answer. Raises a `ModelError`."""
        if model.provider.lacks_key:
            raise ModelRefusedError(missing_key(model))
        if request.stream:
            return await _stream(model, request, on_chunk)
        return await _ask(model, request)


async def close_clients() -> None:
    """Close the connections that the running event loop holds to providers; they are closed with it in any case."""
    for client in _clients.pop(asyncio.get_running_loop(), {}).values():
        await client.close()


def request_body(model: "Model", request: "ModelRequest") -> bytes:
    """The JSON that is sent. Nothing is in it that was not asked for (checklist I12)."""
    settings = request.settings
    body: dict[str, Any] = {
        "model": model.provider_model_id,
        "messages": request.messages,
        "temperature": settings.temperature,
        "max_completion_tokens": settings.max_completion_tokens,
    }
    if request.tools:  # providers refuse the other two settings where no tools are
        body["tools"] = request.tools
        body["tool_choice"] = settings.tool_choice
        body["parallel_tool_calls"] = settings.parallel_tool_calls
    if request.stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    try:
        return dump_json({key: value for key, value in body.items() if value is not None} | dict(request.extra))
    except PydanticSerializationError as error:
        raise ContextError(
            f"the conversation cannot be sent to {model.name!r}, it does not serialise: {error}"
        ) from None


async def _ask(model: "Model", request: "ModelRequest") -> "ChatCompletion":
    import openai
    from openai.types.chat import ChatCompletion

    client = await _client(model.provider)
    body = request_body(model, request)
    try:
        completion = await client.post(_PATH, cast_to=ChatCompletion, content=body, options=_options(request))
    except (openai.OpenAIError, ValueError) as error:  # ValueError: what should be JSON is not
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
    """The stream's chunks, its errors translated: whatever breaks a begun stream, the answer is not whole."""
    import openai
    from openai.types.chat import ChatCompletionChunk

    begun = False
    try:
        async for chunk in stream:
            if not isinstance(chunk, ChatCompletionChunk):
                raise unreadable(model, "a piece of it is no chunk")
            begun = True
            yield chunk
    except (openai.OpenAIError, ValueError) as error:
        translated = explain(error, model)
        raise (unreadable(model, translated) if begun else translated) from None


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
            api_key=provider.api_key or "none",  # the SDK insists on one, also for a server that needs none
            max_retries=0,
        )
    return clients[identity]


def _options(request: "ModelRequest") -> "RequestOptions":
    from openai import Timeout

    return {
        "headers": {"Content-Type": "application/json"},
        "timeout": Timeout(request.timeout, connect=min(_CONNECT_TIMEOUT, request.timeout)),
    }
