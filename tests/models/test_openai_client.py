"""The real openai client against `llmock`, a real HTTP server on a socket that speaks the OpenAI protocol.

Real: the client, HTTP, the faults on the wire. Fake: the language model.
"""

import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
from llmock.pytest_plugin import LLMock
from openai.types.chat import ChatCompletionChunk

from factorial.context import AgentContext
from factorial.errors import ModelError, ModelRefusedError, RateLimitError, TruncatedResponseError
from factorial.models import (
    Model,
    ModelRequest,
    Provider,
    ResolvedModelSettings,
    assistant_message,
    complete,
    fallback_models,
    gpt_41,
)
from factorial.tools import build_tools, call_tool


def get_weather(city: str) -> str:
    """Get the current weather for a city."""
    return f"21C in {city}"


TOOLS = build_tools([get_weather])


def served_by(llmock: LLMock, name: str) -> Model:
    return Model(name, Provider("local", llmock.base_url("openai"), api_key_env=None))


async def test_a_plain_answer(llmock: LLMock, request_: ModelRequest) -> None:
    llmock.reply("Sunny.")
    completion = await complete(gpt_41, request_)
    assert assistant_message(completion) == {"role": "assistant", "content": "Sunny."}
    assert completion.usage and completion.usage.total_tokens > 0


async def test_only_what_was_asked_for_is_sent(llmock: LLMock, request_: ModelRequest) -> None:
    await complete(gpt_41, request_)
    assert llmock.last_request.body == {"model": "gpt-4.1", "messages": list(request_.messages)}


async def test_settings_and_tools_are_sent(llmock: LLMock, request_: ModelRequest) -> None:
    settings = ResolvedModelSettings(0.5, 100, "required", False)
    tools = [tool.param for tool in TOOLS.values()]
    await complete(gpt_41, replace(request_, settings=settings, tools=tools))
    body = llmock.last_request.body
    assert {key: body[key] for key in body if key not in ("model", "messages")} == {
        "temperature": 0.5,
        "max_completion_tokens": 100,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "tools": tools,
    }


async def test_settings_for_tools_are_not_sent_without_tools(llmock: LLMock, request_: ModelRequest) -> None:
    """OpenAI rejects a request that has them without tools."""
    await complete(gpt_41, replace(request_, settings=ResolvedModelSettings(None, None, "auto", True)))
    assert set(llmock.last_request.body) == {"model", "messages"}


async def test_a_stream_becomes_a_whole_answer(llmock: LLMock, request_: ModelRequest) -> None:
    llmock.reply("It is sunny in Paris today.")
    chunks: list[ChatCompletionChunk] = []

    async def keep(chunk: ChatCompletionChunk) -> None:
        chunks.append(chunk)

    completion = await complete(gpt_41, replace(request_, stream=True), keep)
    assert completion.choices[0].message.content == "It is sunny in Paris today."
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage and completion.usage.total_tokens > 0
    shown = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert shown == "It is sunny in Paris today."


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_called_and_its_result_goes_back(llmock: LLMock, request_: ModelRequest, stream: bool) -> None:
    """The server accepts what `assistant_message` returns when it is sent back."""
    llmock.call_tool("get_weather", {"city": "Paris, in the springtime"})
    offered = replace(request_, tools=[tool.param for tool in TOOLS.values()], stream=stream)
    completion = await complete(gpt_41, offered)
    message = assistant_message(completion)
    [call] = completion.choices[0].message.tool_calls or []
    result = await call_tool(TOOLS["get_weather"], call, AgentContext(query="q"), None)  # type: ignore[arg-type]
    assert result.output_str == "21C in Paris, in the springtime"

    llmock.reply("21 degrees.")
    answer = {"role": "tool", "tool_call_id": result.tool_call_id, "content": result.output_str}
    final = await complete(gpt_41, replace(offered, messages=[*request_.messages, message, answer]))
    assert final.choices[0].message.content == "21 degrees."


@pytest.mark.parametrize("stream", [False, True])
async def test_malformed_arguments_go_back_to_the_model(llmock: LLMock, request_: ModelRequest, stream: bool) -> None:
    llmock.break_tool_call("malformed_arguments")
    tools = [tool.param for tool in TOOLS.values()]
    completion = await complete(gpt_41, replace(request_, tools=tools, stream=stream))
    [call] = completion.choices[0].message.tool_calls or []
    result = await call_tool(TOOLS["get_weather"], call, AgentContext(query="q"), None)  # type: ignore[arg-type]
    assert result.error and "not valid JSON" in result.output_str and "'get_weather'" in result.output_str
    assert assistant_message(completion)["tool_calls"][0]["function"]["arguments"] == "{}"


async def test_an_unknown_tool_goes_back_to_the_model(llmock: LLMock, request_: ModelRequest) -> None:
    llmock.break_tool_call("unknown_tool")
    completion = await complete(gpt_41, replace(request_, tools=[tool.param for tool in TOOLS.values()]))
    [call] = completion.choices[0].message.tool_calls or []
    name = call.function.name  # type: ignore[union-attr]
    assert name not in TOOLS
    result = await call_tool(None, call, AgentContext(query="q"), None, known=TOOLS)  # type: ignore[arg-type]
    assert result.output_str == f"Error: there is no tool '{name}'; the tools are: get_weather"


async def test_a_short_rate_limit_is_waited_out_within_the_call(llmock: LLMock, request_: ModelRequest) -> None:
    llmock.rate_limit(times=1, retry_after=1).reply("Sunny.")
    started = time.monotonic()
    completion = await complete(gpt_41, request_)
    assert time.monotonic() - started >= 1.0
    assert completion.choices[0].message.content == "Sunny."
    llmock.assert_resilient(strict=True)


async def test_a_long_rate_limit_is_left_to_the_task(llmock: LLMock, request_: ModelRequest) -> None:
    llmock.rate_limit(times=None, retry_after=60)
    with pytest.raises(RateLimitError) as limited:
        await complete(gpt_41, request_)
    assert limited.value.retry_after == 60 and limited.value.status == 429
    assert len(llmock.requests) == 1


async def test_an_exhausted_quota_is_not_a_rate_limit(llmock: LLMock, request_: ModelRequest) -> None:
    llmock.fail(429, code="insufficient_quota", times=None)
    with pytest.raises(ModelRefusedError):
        await complete(gpt_41, request_)
    assert len(llmock.requests) == 1


async def test_a_temporary_error_is_retried_within_the_call(llmock: LLMock, request_: ModelRequest) -> None:
    llmock.fail(503, times=2).reply("Sunny.")
    completion = await complete(gpt_41, request_)
    assert completion.choices[0].message.content == "Sunny."
    llmock.assert_resilient(strict=True)


async def test_an_outage_ends_the_call_after_a_few_tries(llmock: LLMock, request_: ModelRequest) -> None:
    llmock.outage()
    with pytest.raises(ModelError, match=r"gpt-4\.1 at openai.*HTTP 503") as failed:
        await complete(gpt_41, request_)
    assert failed.value.status == 503 and not isinstance(failed.value, ModelRefusedError)
    assert len(llmock.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_a_refusal_is_not_tried_again(llmock: LLMock, request_: ModelRequest, status: int) -> None:
    llmock.fail(status, times=None)
    with pytest.raises(ModelRefusedError) as refused:
        await complete(gpt_41, request_)
    assert refused.value.status == status
    assert len(llmock.requests) == 1
    if status == 401:
        assert "Check OPENAI_API_KEY" in str(refused.value)


@pytest.mark.parametrize("status", [401, 429, 503])
async def test_the_next_model_is_tried(llmock: LLMock, request_: ModelRequest, status: int) -> None:
    llmock.fail(status, model="first", times=None, retry_after=30 if status == 429 else None).reply("From the second.")
    first, second = served_by(llmock, "first"), served_by(llmock, "second")
    completion = await complete(fallback_models(first, second), request_)
    assert completion.choices[0].message.content == "From the second."
    assert [record.model for record in llmock.requests] == ["first", "second"]


async def test_a_model_without_its_key_falls_back(
    llmock: LLMock, request_: ModelRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    keyless = Model("keyless", Provider("elsewhere", llmock.base_url("openai"), "NO_SUCH_KEY"))
    await complete(fallback_models(keyless, gpt_41), request_)
    assert [record.model for record in llmock.requests] == ["gpt-4.1"]
    with pytest.raises(ModelRefusedError, match="NO_SUCH_KEY"):
        await complete(keyless, request_)


async def test_when_all_models_fail_the_error_names_each(llmock: LLMock, request_: ModelRequest) -> None:
    llmock.fail(401, model="first", times=None).fail(429, model="second", times=None, retry_after=45)
    with pytest.raises(RateLimitError, match=r"all 2 models failed: first.*401.*second.*429") as failed:
        await complete(fallback_models(served_by(llmock, "first"), served_by(llmock, "second")), request_)
    assert failed.value.retry_after == 45


@pytest.mark.parametrize("fault", ["truncate", "disconnect", "corrupt"])
async def test_a_broken_stream_is_a_failed_call(llmock: LLMock, request_: ModelRequest, fault: str) -> None:
    """A partial answer is not returned."""
    getattr(llmock, fault)(after_chunks=3, times=None)
    with pytest.raises(TruncatedResponseError):
        await complete(gpt_41, replace(request_, stream=True))
    assert len(llmock.requests) == 1


async def test_a_broken_stream_falls_back(llmock: LLMock, request_: ModelRequest) -> None:
    llmock.truncate(after_chunks=2, times=1).reply("Never whole.").reply("From the second.")
    models = fallback_models(served_by(llmock, "first"), served_by(llmock, "second"))
    completion = await complete(models, replace(request_, stream=True))
    assert completion.choices[0].message.content == "From the second."


async def test_a_stalled_stream_times_out(llmock: LLMock, request_: ModelRequest) -> None:
    llmock.stall(after_chunks=2, seconds=5)
    started = time.monotonic()
    with pytest.raises(TruncatedResponseError, match="no answer in time"):
        await complete(gpt_41, replace(request_, stream=True, timeout=0.3))
    assert time.monotonic() - started < 3


async def test_a_slow_answer_times_out(llmock: LLMock, request_: ModelRequest) -> None:
    """There is no further try, because the timeout of the whole call is over."""
    llmock.delay(1.5, times=None)
    with pytest.raises(ModelError, match="no answer in time"):
        await complete(gpt_41, replace(request_, timeout=0.3))
    assert len(llmock.requests) == 1


async def test_what_the_chunk_handler_raises_passes_through(llmock: LLMock, request_: ModelRequest) -> None:
    """It is not an error of the model, although it is raised within the call."""

    async def fail(chunk: Any) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await complete(gpt_41, replace(request_, stream=True), fail)
    assert len(llmock.requests) == 1


def test_clients_of_ended_event_loops_are_released(llmock: LLMock) -> None:
    """A program that calls `asyncio.run` repeatedly accumulates no clients, and gets no warnings about open ones."""
    program = (
        "import asyncio; from factorial.models import ModelRequest, complete, gpt_41\n"
        "from factorial.models.transports import sdk\n"
        "for _ in range(3): asyncio.run(complete(gpt_41, ModelRequest([{'role': 'user', 'content': 'hi'}])))\n"
        "print(len(sdk._clients))"
    )
    run = subprocess.run([sys.executable, "-Wdefault", "-c", program], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("0\n", "")
    assert len(llmock.requests) == 3
