"""A tool call from the model's text to the result. Real: tools, threads, the SDK's type of a call. No model."""

import asyncio
import functools
import json
import os
import sys
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import date
from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessageToolCall
from pydantic import BaseModel

from factorial.context import AgentContext, Batch, ExecutionContext
from factorial.errors import FatalAgentError, RetryableError
from factorial.events import BaseEvent
from factorial.tools import FunctionTool, FunctionToolActionResult, call_tool, function_tool

WHO: ContextVar[str] = ContextVar("who", default="nobody")
CONTEXT = AgentContext(query="q")


class NoEvents:
    async def publish_event(self, event: BaseEvent) -> None: ...


def tool_call(name: str, /, *, raw: str | None = None, **arguments: Any) -> ChatCompletionMessageToolCall:
    text = json.dumps(arguments) if raw is None else raw
    return ChatCompletionMessageToolCall.model_validate(
        {"id": "call_1", "type": "function", "function": {"name": name, "arguments": text}}
    )


async def run(function: Any, raw: str | None = None, /, parse: bool = True, **kw: Any) -> FunctionToolActionResult:
    tool = function if isinstance(function, FunctionTool) else function_tool(name="tool")(function)
    return await call_tool(tool, tool_call(tool.name, raw=raw, **kw), CONTEXT, None, parse_args=parse)


@dataclass
class Point:
    x: int
    y: int = 0


class Report(BaseModel):
    day: date


@pytest.mark.parametrize(
    ("returned", "shown", "data"),
    [
        ("sunny", "sunny", "sunny"),
        ("", "", ""),
        (("two hits", [1, 2]), "two hits", [1, 2]),
        ((1.5, 2.5), "[1.5,2.5]", (1.5, 2.5)),
        (Report(day=date(2026, 1, 2)), '{"day":"2026-01-02"}', Report(day=date(2026, 1, 2))),
        ([Point(1)], '[{"x":1,"y":0}]', [Point(1)]),
        ({"é": {1}}, '{"é":[1]}', {"é": {1}}),
        (None, "null", None),
        (float("nan"), "null", ...),
        ("half \udc80", "half ?", "half \udc80"),
    ],
)
async def test_results_of_tools(returned: Any, shown: str, data: Any) -> None:
    result = await run(lambda: returned)
    assert (result.tool_call_id, result.output_str, result.error) == ("call_1", shown, None)
    assert data is ... or result.output_data == data


async def test_a_result_that_is_not_json_is_an_error() -> None:
    result = await run(lambda: object())
    assert result.error and "a value of type object, which is neither text nor JSON" in result.output_str


@pytest.mark.parametrize("value", [Batch("b", ["1"]), ("started", Batch("b", ["1"])), [Batch("b", [])]])
async def test_a_batch_that_nothing_awaits_is_refused(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    result = await run(lambda: value)
    assert result.error and result.error.startswith("the tool 'tool' returned a Batch, and nothing awaits its tasks")
    assert "@forking_tool(timeout=...)" in result.output_str and "@forking_tool" in caplog.text


async def test_a_tool_may_shape_its_own_result() -> None:
    result = await run(lambda: FunctionToolActionResult(tool_call_id="", output_str="shown", output_data=7))
    assert (result.tool_call_id, result.output_str, result.output_data) == ("call_1", "shown", 7)


async def test_an_exception_is_shown_to_the_model() -> None:
    def tool() -> None:
        raise KeyError("Paris")

    result = await run(tool)
    assert result.error == "KeyError: 'Paris'" and result.output_str == "Error: KeyError: 'Paris'"


@pytest.mark.parametrize("error", [FatalAgentError("stop"), RetryableError("again")])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_some_errors_are_for_the_host(error: BaseException, asynchronous: bool) -> None:
    def plain() -> None:
        raise error

    async def awaited() -> None:
        raise error

    with pytest.raises(type(error)):
        await run(awaited if asynchronous else plain)


async def test_neither_sys_exit_nor_StopIteration_ends_the_worker() -> None:
    """The first would end the process, and with the second the caller would wait forever."""
    assert "SystemExit" in (await run(lambda: sys.exit(3))).output_str

    async def leave() -> None:
        sys.exit(3)

    assert "SystemExit" in (await run(leave)).output_str
    assert "StopIteration" in (await asyncio.wait_for(run(lambda: next(iter([]))), 5)).output_str


async def test_plain_functions_run_in_a_thread_with_their_context() -> None:
    WHO.set("me")
    result = await run(lambda: f"{WHO.get()} {threading.current_thread() is threading.main_thread()}")
    assert result.output_str == "me False"


async def test_a_blocking_tool_does_not_block_the_loop() -> None:
    released = threading.Event()

    async def release() -> None:
        released.set()

    result, _ = await asyncio.gather(run(lambda: released.wait(10)), release())
    assert result.output_str == "true"


async def test_awaitables_are_awaited() -> None:
    async def inner() -> str:
        return f"main {threading.current_thread() is threading.main_thread()}"

    assert (await run(inner)).output_str == "main True"
    assert (await run(lambda: inner())).output_str == "main True"

    @functools.wraps(inner)
    def wrapped() -> str:
        return asyncio.run(inner())

    assert (await run(wrapped)).output_str == "main False"


def scale(point: Point, factor: int = 2, day: date | None = None) -> str:
    return f"{point.x * factor} {day}"


async def test_arguments_arrive_with_their_types() -> None:
    assert (await run(scale, point={"x": 3}, factor="5", day="2026-01-02")).output_str == "15 2026-01-02"
    assert (await run(scale, point={"x": 3})).output_str == "6 None"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ('{"point": {"x": 1}', "the arguments of 'tool' are not valid JSON"),
        ('{"point": {"x": "a"}}', "'point.x': Input should be a valid integer"),
        ('{"point": {"x": "a"}}', "(you sent 'a')"),
        ("{}", "'point' is missing"),
        ("", "'point' is missing"),
        ('{"point": {"x": 1}, "q": 1}', "'q' is not a parameter"),
        ("[]", "'the whole': Input should be"),
        ("null", "'the whole': Input should be"),
    ],
)
async def test_invalid_arguments_go_back_to_the_model(raw: str, says: str) -> None:
    result = await run(scale, raw)
    assert result.error and says in result.output_str


async def test_empty_arguments_are_accepted() -> None:
    """Models send an empty text for a tool without parameters."""
    assert (await run(lambda: "done", "")).output_str == "done"


async def test_the_length_of_an_error_is_limited() -> None:
    def tool() -> None:
        raise ValueError("x" * 100_000)

    assert len((await run(tool)).output_str) < 3_000


async def test_raw_arguments() -> None:
    def echo(raw: str, agent_ctx: AgentContext) -> str:
        return f"{agent_ctx.query}: {raw}"

    assert (await run(echo, '{"broken"', parse=False)).output_str == 'q: {"broken"'
    assert (await run(lambda: "done", "{}", parse=False)).output_str == "done"


async def test_an_unknown_tool() -> None:
    result = await call_tool(None, tool_call("fly"), CONTEXT, None, known=["walk", "run"])
    assert result.output_str == "Error: there is no tool 'fly'; the tools are: walk, run"
    result = await call_tool(None, tool_call("fly"), CONTEXT, None)
    assert "there are no tools" in result.output_str


async def test_the_execution_context_is_passed() -> None:
    def tool(execution_ctx: ExecutionContext) -> str:
        return f"{execution_ctx.task_id} {os.getpid()}"

    execution_ctx = ExecutionContext("task-1", "owner", NoEvents())
    result = await call_tool(function_tool(tool), tool_call("tool"), CONTEXT, execution_ctx)
    assert result.output_str == f"task-1 {os.getpid()}"
