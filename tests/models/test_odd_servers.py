"""Answers that compatible servers send and OpenAI does not, and invalid ones.

Real: the openai client, HTTP. Fake: the server's answers, which the tests write byte by byte.
"""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from factorial.errors import ContextError, ModelError, ModelRefusedError, TruncatedResponseError
from factorial.models import Model, ModelRequest, Provider, assistant_message, complete
from tests.models.conftest import RawServer

HEAD: dict[str, Any] = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "raw"}


def piece(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {**HEAD, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"<html>Bad gateway</html>", "text/html"),
        (b'{"id": "c1", "choi', "application/json"),
        (b'{"id": "c1", "choices": []}', "application/json"),
        (b'{"id": "c1", "choices": [{"index": 0}]}', "application/json"),
        (b'{"id": "c1", "choices": {"0": 1}}', "application/json"),
        (b"[1, 2]", "application/json"),
    ],
)
async def test_an_invalid_answer(raw_server: RawServer, request_: ModelRequest, body: bytes, content_type: str) -> None:
    raw_server.answer(body, content_type=content_type)
    with pytest.raises(TruncatedResponseError, match="raw at local"):
        await complete(raw_server.model, request_)


@pytest.mark.parametrize(
    "junk", ['"text"', "[1]", "{", "{}", '{"choices": [{"index": 0}]}', '{"choices": 5}', '{"choices": [{"delta": 5}]}']
)
async def test_an_invalid_stream(raw_server: RawServer, request_: ModelRequest, junk: str) -> None:
    raw_server.stream(junk, "[DONE]")
    with pytest.raises(TruncatedResponseError):
        await complete(raw_server.model, replace(request_, stream=True))


async def test_an_error_within_a_stream(raw_server: RawServer, request_: ModelRequest) -> None:
    raw_server.stream({"error": {"message": "The engine is overloaded", "type": "server_error"}})
    with pytest.raises(ModelError, match="The engine is overloaded"):
        await complete(raw_server.model, replace(request_, stream=True))


async def test_parallel_tool_calls_all_under_index_0(raw_server: RawServer, request_: ModelRequest) -> None:
    """Gemini streams each call in one chunk, with its own id, and with index 0 or none."""
    calls: list[dict[str, Any]] = [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"index": 0, "id": "b", "type": "function", "function": {"name": "f", "arguments": '{"x": 2}'}},
        {"id": "c", "type": "function", "function": {"name": "g", "arguments": ""}},
    ]
    raw_server.stream(*(piece({"tool_calls": [call]}) for call in calls), piece({}, "tool_calls"), "[DONE]")
    completion = await complete(raw_server.model, replace(request_, stream=True))
    sent = assistant_message(completion)["tool_calls"]
    assert [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in sent] == [
        ("a", "f", '{"x": 1}'),
        ("b", "f", '{"x": 2}'),
        ("c", "g", "{}"),
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_thought_signature_goes_back_with_its_call(
    raw_server: RawServer, request_: ModelRequest, stream: bool
) -> None:
    """Gemini rejects a tool call that comes back without it."""
    call = {
        "id": "a",
        "type": "function",
        "function": {"name": "f", "arguments": "{}"},
        "extra_content": {"google": {"thought_signature": "s"}},
    }
    if stream:
        raw_server.stream(piece({"role": "assistant", "tool_calls": [call]}), piece({}, "tool_calls"), "[DONE]")
    else:
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        raw_server.answer({**HEAD, "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})
    raw_server.answer({**HEAD, "choices": [{"index": 0, "message": {"role": "assistant", "content": "done"}}]})
    completion = await complete(raw_server.model, replace(request_, stream=stream))
    message = assistant_message(completion)
    asked = replace(
        request_, messages=[*request_.messages, message, {"role": "tool", "tool_call_id": "a", "content": ""}]
    )
    await complete(raw_server.model, asked)
    assert raw_server.requests[-1]["messages"][1] == {"role": "assistant", "content": None, "tool_calls": [call]}
    other = replace(raw_server.model, provider=replace(raw_server.model.provider, name="other"))
    await complete(other, asked)
    assert "extra_content" not in raw_server.requests[-1]["messages"][1]["tool_calls"][0], "it is nobody else's"


async def test_a_refusal_in_words(raw_server: RawServer, request_: ModelRequest) -> None:
    raw_server.stream(piece({"refusal": "I can"}), piece({"refusal": "not."}), piece({}, "stop"), "[DONE]")
    completion = await complete(raw_server.model, replace(request_, stream=True))
    assert completion.choices[0].message.refusal == "I cannot."
    assert assistant_message(completion) == {
        "role": "assistant",
        "content": "I cannot.",
        "provider_data": {
            "provider": "local",
            "api": "chat",
            "finish_reason": "refusal",
            "message": {"refusal": "I cannot."},
        },
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_half_of_an_emoji(raw_server: RawServer, request_: ModelRequest, stream: bool) -> None:
    """Some servers cut one between two tokens."""
    if stream:
        raw_server.stream(piece({"content": "a\ud83d"}), piece({}, "stop"), "[DONE]")
    else:
        raw_server.answer({**HEAD, "choices": [{"index": 0, "message": {"role": "assistant", "content": "a\ud83d"}}]})
    completion = await complete(raw_server.model, replace(request_, stream=stream))
    assert completion.choices[0].message.content == "a?"


async def test_keys_are_not_shown(
    raw_server: RawServer, request_: ModelRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAW_KEY", "topsecretkey\n")
    provider = replace(raw_server.model.provider, api_key_env="RAW_KEY")
    raw_server.answer({"error": {"message": "bad key topsecretkey, not sk-proj-abcdefgh12345678"}}, status=401)
    with pytest.raises(ModelRefusedError) as refused:
        await complete(Model("raw", provider), request_)
    assert "Bearer topsecretkey" in raw_server.headers[0]
    for text in (str(refused.value), repr(provider), caplog.text):
        assert "topsecretkey" not in text and "abcdefgh" not in text
    assert refused.value.__cause__ is None and refused.value.__suppress_context__


async def test_a_server_that_does_not_exist(request_: ModelRequest, unused_tcp_port: int) -> None:
    model = Model("gone", Provider("local", f"http://127.0.0.1:{unused_tcp_port}/v1", None))
    with pytest.raises(ModelError, match=rf"no connection to http://127.0.0.1:{unused_tcp_port}/v1"):
        await complete(model, replace(request_, timeout=1.0))


async def test_a_conversation_that_does_not_serialise(raw_server: RawServer) -> None:
    with pytest.raises(ContextError, match="does not serialise"):
        await complete(raw_server.model, ModelRequest([{"role": "user", "content": object()}]))


def test_each_event_loop_has_its_own_client(request_: ModelRequest) -> None:
    """A client's connections cannot be used from another loop."""

    async def ask() -> str | None:
        raw = RawServer()
        raw.answer({**HEAD, "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}]})
        async with raw.running():
            completion = await complete(raw.model, request_)
            return completion.choices[0].message.content

    assert [asyncio.run(ask()), asyncio.run(ask())] == ["hi", "hi"]
