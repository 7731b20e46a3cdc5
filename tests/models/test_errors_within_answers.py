"""Errors and other things in place of an answer, under the status 200; keys and addresses that need care.

Real: the openai client, HTTP. Fake: the server's answers, which the tests write byte by byte.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from factorial import Agent, AgentContext, MultiClient
from factorial.errors import (
    ConfigError,
    ModelError,
    ModelRefusedError,
    ModelUnavailableError,
    RateLimitError,
    TruncatedResponseError,
)
from factorial.models import Model, ModelRequest, Provider, check_model, complete, fallback_models
from factorial.models.faults import _retry_after
from tests.models.conftest import RawServer
from tests.models.test_odd_servers import HEAD, piece

WHOLE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "done"}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        ({"choices": None, "error": {"code": 429, "message": "slow down"}}, RateLimitError, "slow down"),
        ({"error": {"code": 401, "message": "no credentials"}}, ModelRefusedError, "no credentials"),
        ({"error": {"code": "429", "message": "slow down"}}, RateLimitError, "slow down"),
        ({"error": {"code": "rate_limit_exceeded", "message": "slow down"}}, RateLimitError, "slow down"),
        ({"error": {"type": "insufficient_quota", "message": "pay"}}, ModelRefusedError, "pay"),
        ({"error": {"type": "invalid_request_error", "message": "bad tool"}}, ModelRefusedError, "bad tool"),
        ({"error": {"type": "overloaded_error", "message": "busy"}}, ModelUnavailableError, "busy"),
        ({"error": "out of memory"}, ModelError, "out of memory"),
        ({"object": "error", "message": "no such model", "code": 404}, ModelRefusedError, "no such model"),
        ({"detail": "Unauthorized", "status": 401}, ModelRefusedError, "Unauthorized"),
        (
            {"choices": [{"error": {"code": 502, "message": "upstream died"}, "message": {}}]},
            ModelUnavailableError,
            "upstream died",
        ),
        ({"choices": [WHOLE | {"finish_reason": "error"}]}, ModelError, "broke off: error"),
        ({"id": "c1", "object": "riddle"}, TruncatedResponseError, "'object': 'riddle'"),
    ],
)
async def test_an_error_in_the_body_is_that_error(
    raw_server: RawServer,
    request_: ModelRequest,
    stream: bool,
    body: dict[str, Any],
    kind: type[ModelError],
    said: str,
) -> None:
    raw_server.answer(body)
    with pytest.raises(kind, match=said) as failed:
        await raw_server.model.transport().create(raw_server.model, replace(request_, stream=stream), None)
    assert type(failed.value) is kind


async def test_an_error_in_the_middle_of_a_stream(raw_server: RawServer, request_: ModelRequest) -> None:
    raw_server.stream(piece({"content": "The dose is"}), {"error": {"code": 502, "message": "upstream died"}})
    with pytest.raises(TruncatedResponseError, match="upstream died"):
        await complete(raw_server.model, replace(request_, stream=True))


async def test_a_stream_that_ends_with_an_error_as_its_reason(raw_server: RawServer, request_: ModelRequest) -> None:
    raw_server.stream(piece({"content": "The dose is"}), piece({}, "error"), "[DONE]")
    with pytest.raises(TruncatedResponseError, match="broke off: error"):
        await complete(raw_server.model, replace(request_, stream=True))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_page_of_html(raw_server: RawServer, request_: ModelRequest, stream: bool) -> None:
    page = b"<!DOCTYPE html><html><style>p {}</style><title>Welcome</title><p>Sign in</p></html>"
    raw_server.answer(page, content_type="text/html")
    with pytest.raises(TruncatedResponseError, match=r"/v1 answers with a page of HTML.*Welcome Sign in"):
        await complete(raw_server.model, replace(request_, stream=stream))


async def test_a_server_that_does_not_stream(raw_server: RawServer, request_: ModelRequest) -> None:
    raw_server.answer({**HEAD, "choices": [WHOLE], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})
    shown = []

    async def keep(chunk: Any) -> None:
        shown.append(chunk.choices[0].delta.content)

    completion = await complete(raw_server.model, replace(request_, stream=True), keep)
    assert completion.choices[0].message.content == "done" and shown == ["done"]
    assert completion.usage is not None and completion.usage.completion_tokens == 2


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "text/event-stream"])
@pytest.mark.parametrize("asked", [False, True])
async def test_a_stream_under_any_type(
    raw_server: RawServer, request_: ModelRequest, content_type: str, asked: bool
) -> None:
    """Also if none was asked for."""
    body = b": hello\n\n" + b"".join(
        f"data: {one}\n\n".encode()
        for one in ('{"choices": [{"index": 0, "delta": {"content": "do"}}]}', '{"choices": [{"index": 0, "delta": '
                    '{"content": "ne"}, "finish_reason": "stop"}]}', "[DONE]")
    )  # fmt: skip
    raw_server.answer(body, content_type=content_type)
    completion = await complete(raw_server.model, replace(request_, stream=asked))
    assert completion.choices[0].message.content == "done"


@pytest.mark.parametrize(
    ("key", "flaw"),
    [
        ("\u201cabcdef0123456789\u201d", "character 1 is U\\+201C"),
        ("abcdef0123456789\u200bfedcba", "character 17 is U\\+200B"),
        ("abcdef0123456789\nfedcba9876543210", "character 17 is U\\+000A \\(a control character\\)"),
        ("abcdef 0123456789", "character 7 is U\\+0020"),
    ],
)
async def test_a_key_that_cannot_be_sent(
    raw_server: RawServer, request_: ModelRequest, monkeypatch: pytest.MonkeyPatch, key: str, flaw: str
) -> None:
    """It is refused before anything is sent, and no part of it is shown."""
    monkeypatch.setenv("RAW_KEY", key)
    model = Model("raw", replace(raw_server.model.provider, api_key_env="RAW_KEY"))
    with pytest.raises(ModelRefusedError, match=f"RAW_KEY is not a key: {flaw}") as refused:
        await complete(model, request_)
    with pytest.raises(ConfigError, match=flaw):
        check_model(model)
    with pytest.raises(ConfigError, match=f"MultiClient: openai_api_key is not a key: {flaw}"):
        MultiClient(openai_api_key=key)
    assert not raw_server.requests
    assert "abcdef" not in str(refused.value) and "fedcba" not in str(refused.value)
    raw_server.answer({**HEAD, "choices": [WHOLE]})
    spare = fallback_models(model, raw_server.model)
    check_model(spare)
    assert (await complete(spare, request_)).choices[0].message.content == "done"


async def test_a_key_between_spaces_is_that_key(
    raw_server: RawServer, request_: ModelRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAW_KEY", "  abcdef0123456789\r\n")
    raw_server.answer({**HEAD, "choices": [WHOLE]})
    await complete(Model("raw", replace(raw_server.model.provider, api_key_env="RAW_KEY")), request_)
    assert "Bearer abcdef0123456789\r\n" in raw_server.headers[0]


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_address_with_a_query(raw_server: RawServer, request_: ModelRequest, slash: str, stream: bool) -> None:
    url = f"http://127.0.0.1:{raw_server.port}/deployments/x{slash}?api-version=2024-10-21&a=1&a=2%2F"
    raw_server.answer({**HEAD, "choices": [WHOLE]})
    await complete(Model("azure", Provider("azure", url, None)), replace(request_, stream=stream))
    first = raw_server.headers[0].splitlines()[0]
    assert first == "POST /deployments/x/chat/completions?api-version=2024-10-21&a=1&a=2%2F HTTP/1.1"


async def test_a_query_is_not_shown(request_: ModelRequest, unused_tcp_port: int) -> None:
    """It may hold a key."""
    url = f"http://me:pass@127.0.0.1:{unused_tcp_port}/v1?key=topsecret"
    with pytest.raises(ModelError) as failed:
        await complete(Model("gone", Provider("local", url, None)), replace(request_, timeout=0.5))
    assert f"no connection to http://127.0.0.1:{unused_tcp_port}/v1: " in str(failed.value)
    assert "topsecret" not in str(failed.value) and "pass" not in str(failed.value)


def test_an_address_with_a_fragment() -> None:
    with pytest.raises(ConfigError, match="base_url has a '#'"):
        _ = Provider("p", "http://a.invalid/v1#x", None).url


@pytest.mark.parametrize("value", ["1e300", "1.79e308", "Fri, 31 Dec 9999 23:59:59 GMT", "315360000"])
def test_a_retry_after_of_years_is_as_long_as_it_says(value: str) -> None:
    """`max_retry_after` of the worker bounds it."""
    assert (_retry_after({"retry-after": value}) or 0) > 86_400


def test_a_retry_after_that_is_a_moment() -> None:
    """Some gateways send the seconds since 1970."""
    asked = _retry_after({"retry-after": str(int(time.time()) + 30)})
    assert asked is not None and 25 < asked <= 30
    assert _retry_after({"retry-after": str(int(time.time()) - 30)}) == 0
    assert _retry_after({"retry-after": "nan"}) is None
    assert _retry_after({"retry-after": "inf"}) is None


@pytest.mark.parametrize("stream", [False, True])
async def test_the_whole_way_of_an_odd_call(raw_server: RawServer, stream: bool) -> None:
    """No type, no id, an object as arguments, a name in spaces; with reasoning that has to come back."""
    seen: list[tuple[str, str]] = []

    def look(city: str) -> str:
        """Look."""
        seen.append((city, "looked"))
        return "4 degrees"

    call = {"function": {"name": " look", "arguments": {"city": "Oslo"}}}
    message = {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"}
    if stream:
        raw_server.stream(piece(message), piece({}, "tool_calls"), "[DONE]")
        raw_server.stream(piece({"content": "done"}), piece({}, "stop"), "[DONE]")
    else:
        raw_server.answer({**HEAD, "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})
        raw_server.answer({**HEAD, "choices": [WHOLE]})
    events: list[dict[str, Any]] = []
    hear: Callable[[Any], Awaitable[None] | None] = lambda event: events.append(event.to_dict())  # noqa: E731
    agent = Agent(name="a", tools=[look], model=raw_server.model, stream=stream)
    context = AgentContext(query="q")
    done = await agent.run_inline(context, hear)
    assert done.output == "done" and seen == [("Oslo", "looked")]
    [_, called, answer] = raw_server.requests[-1]["messages"]
    call_id = answer["tool_call_id"]
    assert called == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": call_id, "type": "function", "function": {"name": "look", "arguments": '{"city":"Oslo"}'}}
        ],
    }
    kept = context.messages[1]["provider_data"]
    assert kept["provider"] == "local" and kept["message"]["reasoning_content"] == "hm"
    assert kept["message"]["tool_calls"][0]["function"] == call["function"]
    shown = {
        tool_call["id"]
        for event in events
        if event["event_type"] == "progress_update_tool_action_started"
        for tool_call in event["data"]["args"]
    } | {
        one["id"]
        for event in events
        if event["event_type"] == "progress_update_completion_chunk"
        for one in event["data"]["choices"][0]["delta"].get("tool_calls") or ()
    }
    assert shown == {call_id}
