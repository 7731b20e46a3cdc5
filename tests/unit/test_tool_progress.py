"""`execution_ctx.progress`: reports from async tools and from threads. Real: the lifecycle, inline, and threads.

Scripted: the model. The same in a worker: `tests/redis/test_user_steps.py`.
"""

import asyncio
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import pytest

from factorial import Agent, AgentContext, BaseEvent, ExecutionContext, FatalAgentError
from factorial.agent.lifecycle import reports
from factorial.errors import FactorialError
from factorial.testing import ScriptedModel, call, calls, say

Heard = list[BaseEvent]


async def heard_of(tool: Callable[..., Any], handler: Callable[[BaseEvent], Any] | None = None) -> Heard:
    """The events of a run that calls `tool` once."""
    heard: Heard = []
    agent = Agent(name="a", tools=[tool], model=ScriptedModel([call(tool.__name__), say("done")]))
    completion = await agent.run_inline(AgentContext(query="q"), event_handler=handler or heard.append)
    assert completion.output == "done"
    return heard


def reported(heard: Heard) -> list[tuple[float, str]]:
    return [(one.data["fraction"], one.data["text"]) for one in heard if one.event_type == "tool_progress"]  # type: ignore[attr-defined]


def look(execution_ctx: ExecutionContext) -> str:
    """Look, in a thread."""
    assert threading.current_thread() is not threading.main_thread()
    for fraction in (0, 0.5, 1):
        execution_ctx.progress(fraction, f"at {fraction}")
    return "seen"


async def look_async(execution_ctx: ExecutionContext) -> str:
    """Look."""
    execution_ctx.progress(0, "at 0")
    await execution_ctx.progress(0.5, "at 0.5")
    ExecutionContext.current().progress(1, "at 1")
    return "seen"


async def look_within_a_step(execution_ctx: ExecutionContext) -> str:
    """Look in a step of its own."""
    return await execution_ctx.step("look", look, execution_ctx)


async def look_in_a_loop_of_its_own(execution_ctx: ExecutionContext) -> str:
    """Look, in a thread with an event loop."""
    return await asyncio.to_thread(lambda: asyncio.run(look_async(execution_ctx)))


TOOLS = [look, look_async, look_within_a_step, look_in_a_loop_of_its_own]


@pytest.mark.parametrize("tool", TOOLS)
async def test_reports_are_events_between_the_start_and_the_end_of_their_call(tool: Callable[..., Any]) -> None:
    heard = await heard_of(tool)
    assert reported(heard) == [(0.0, "at 0"), (0.5, "at 0.5"), (1.0, "at 1")]
    report = next(one for one in heard if one.event_type == "tool_progress")
    assert (report.agent_name, report.owner_id, bool(report.task_id)) == ("a", "inline", True)
    assert report.data["tool_call_id"] == "call_0_0" and report.turn == 0  # type: ignore[attr-defined]
    assert report.metadata and report.metadata["attempt"] == 1
    types = [one.event_type for one in heard if "tool" in one.event_type]
    start, end = "progress_update_tool_action_started", "progress_update_tool_action_completed"
    assert types == [start, *["tool_progress"] * 3, end]


async def test_a_slow_handler_gets_reports_in_order_and_before_the_end() -> None:
    heard: Heard = []

    async def handle(event: BaseEvent) -> None:
        for _ in range(5 if event.event_type == "tool_progress" and event.data["fraction"] == 0 else 1):  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        heard.append(event)

    await heard_of(look, handle)
    assert reported(heard) == [(0.0, "at 0"), (0.5, "at 0.5"), (1.0, "at 1")]
    assert heard[-1].event_type == "run_completed"
    types = [one.event_type for one in heard]
    assert types.index("progress_update_tool_action_completed") > types.index("tool_progress") + 2


async def test_reports_of_parallel_calls_name_their_calls() -> None:
    heard: Heard = []
    agent = Agent(
        name="a", tools=[look, look_async], model=ScriptedModel([calls(call("look"), call("look_async")), "ok"])
    )
    await agent.run_inline(AgentContext(query="q"), event_handler=heard.append)
    ids = [one.data["tool_call_id"] for one in heard if one.event_type == "tool_progress"]  # type: ignore[attr-defined]
    assert sorted(ids) == ["call_0_0"] * 3 + ["call_0_1"] * 3


async def test_a_tool_that_fails_has_reported_before() -> None:
    async def broken(execution_ctx: ExecutionContext) -> str:
        """Break."""
        execution_ctx.progress(0.5)
        raise ConnectionError("gone")

    types = [one.event_type for one in await heard_of(broken) if "tool" in one.event_type]
    assert types[1:] == ["tool_progress", "progress_update_tool_action_failed"]


async def test_a_handler_that_fails_on_a_report_ends_the_run() -> None:
    def refuse(event: BaseEvent) -> None:
        if event.event_type == "tool_progress":
            raise ValueError("not this one")

    with pytest.raises(FatalAgentError, match="event_handler failed on tool_progress: ValueError: not this one"):
        await heard_of(look_async, refuse)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, 50, float("nan"), float("inf"), True, "half", None])
async def test_what_is_not_a_fraction_is_an_error_of_the_tool(fraction: Any) -> None:
    async def look(execution_ctx: ExecutionContext) -> str:
        """Look."""
        execution_ctx.progress(fraction)
        return "seen"

    heard = await heard_of(look)
    failed = next(one for one in heard if one.event_type == "progress_update_tool_action_failed")
    assert "use a number from 0 to 1" in str(failed.error)  # type: ignore[attr-defined]
    assert reported(heard) == []


async def test_the_size_and_the_number_of_reports_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "_INTERVAL", 3600.0)

    async def look(execution_ctx: ExecutionContext) -> str:
        """Look."""
        for number in range(2001):
            execution_ctx.progress(number / 2000, "x" * 5000)
        return "seen"

    heard = reported(await heard_of(look))
    assert [fraction for fraction, _ in heard] == [number / 2000 for number in range(100)]
    assert max(len(text) for _, text in heard) < 1100
    monkeypatch.setattr(reports, "_INTERVAL", 0.0)
    assert len(reported(await heard_of(look))) == 2001


async def test_outside_of_a_run_nothing_can_be_reported() -> None:
    kept: list[ExecutionContext] = []

    async def look(execution_ctx: ExecutionContext) -> str:
        """Look."""
        kept.append(execution_ctx)
        return "seen"

    await heard_of(look)
    with pytest.raises(FactorialError, match="progress can be reported only while an agent takes a turn"):
        kept[0].progress(0.5)


async def test_a_thread_that_outlives_its_turn_reports_nothing() -> None:
    ended, late = threading.Event(), threading.Event()

    async def leave_behind(execution_ctx: ExecutionContext) -> str:
        """Leave a thread behind."""

        def report() -> None:
            ended.wait(20)
            execution_ctx.progress(0.9, "late")
            late.set()

        asyncio.get_running_loop().run_in_executor(None, _in_present_context(report))
        return "seen"

    heard = await heard_of(leave_behind)
    ended.set()
    await asyncio.to_thread(late.wait, 20)
    await asyncio.sleep(0)
    assert reported(heard) == []


def _in_present_context(function: Callable[[], None]) -> Callable[[], Any]:
    context = copy_context()
    return lambda: context.run(function)
