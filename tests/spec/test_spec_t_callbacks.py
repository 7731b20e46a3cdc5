"""Chapter T of PROMISES.md: lifecycle callbacks. Real: Valkey, HTTP, the openai client. Fake: the language model."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from factorial import Agent, AgentContext, ExecutionContext, FatalAgentError, deferred_result, gpt_41
from factorial.errors import ConfigError
from factorial.testing import call
from tests.harness import System
from tests.spec.provider import Provider
from tests.support import wait_until

NAMES = {
    "on_run_start": 2, "on_run_end": 3, "on_turn_start": 2, "on_turn_end": 3, "on_pending_tool_call": 3,
    "on_pending_tool_results": 3, "on_run_cancelled": 2,
}  # fmt: skip


class Diary:
    """Callbacks that write an entry for each call. Every other one is async."""

    def __init__(self) -> None:
        self.entries: list[str] = []
        self.last: dict[str, tuple[Any, ...]] = {}

    def callbacks(self) -> dict[str, Any]:
        """One for each name."""
        return {name: self._callback(name, is_async=number % 2 == 0) for number, name in enumerate(NAMES)}

    def _callback(self, name: str, *, is_async: bool) -> Callable[..., Any]:
        def note(*arguments: Any) -> None:
            agent_ctx, execution_ctx, *_ = arguments
            assert isinstance(agent_ctx, AgentContext) and isinstance(execution_ctx, ExecutionContext)
            self.entries.append(f"{name.removeprefix('on_')} {agent_ctx.turn}")
            self.last[name] = arguments

        async def note_later(*arguments: Any) -> None:
            await asyncio.sleep(0)
            note(*arguments)

        return note_later if is_async else note


@deferred_result(timeout=60)
def ask() -> None:
    """Ask."""


async def test_spec_T04_each_callback_at_its_time(system: System, provider: Provider) -> None:
    provider.replies = [call("ask"), "Done."]
    diary = Diary()
    agent = Agent(name="clerk", tools=[ask], model=gpt_41, **diary.callbacks())
    await system.start(agent)
    task_id = await system.submit(agent)
    data = await system.reaches(task_id, "pending_tool_results")
    assert diary.entries == ["run_start 0", "turn_start 0", "pending_tool_call 0", "turn_end 1"]
    call_id = data["awaits"][0].removeprefix("tool:")
    assert diary.last["on_pending_tool_call"][2].id == call_id
    assert diary.last["on_turn_end"][2].pending_tool_call_ids == [call_id]
    await system.orchestrator.complete_deferred_tool(task_id, call_id, {"answer": "yes"})
    await system.ended(task_id)
    await wait_until(lambda: "run_end 2" in diary.entries)
    assert diary.entries[4:] == ["pending_tool_results 1", "turn_start 1", "turn_end 2", "run_end 2"]
    assert diary.last["on_pending_tool_results"][2] == [(call_id, {"answer": "yes"})]
    end = diary.last["on_run_end"][2]
    assert (end.output, end.error) == ("Done.", None) and end.duration > 0


async def test_spec_T04_a_failed_run_and_a_cancelled_one(system: System, provider: Provider) -> None:
    diary = Diary()
    agent = Agent(name="clerk", model=gpt_41, **diary.callbacks())
    await system.start(agent)
    failing = await system.submit(agent)
    (await provider.called()).refuse(401, "wrong key")
    assert (await system.ended(failing))["status"] == "failed"
    await wait_until(lambda: "run_end 0" in diary.entries)
    assert "wrong key" in str(diary.last["on_run_end"][2].error)
    unwanted = await system.submit(agent)
    await provider.called()
    await system.orchestrator.cancel_task(unwanted)
    assert (await system.ended(unwanted))["status"] == "cancelled"
    await wait_until(lambda: "run_cancelled 0" in diary.entries)
    assert diary.entries == [
        "run_start 0",
        "turn_start 0",
        "run_end 0",
        "run_start 0",
        "turn_start 0",
        "run_cancelled 0",
    ]


async def test_spec_T04_a_run_that_nobody_holds_is_cancelled(system: System, provider: Provider) -> None:
    """It is parked: the orchestrator that cancels it calls back, once, if it knows the agent."""
    provider.replies = [call("ask")]
    diary = Diary()
    agent = Agent(name="clerk", tools=[ask], model=gpt_41, **diary.callbacks())
    await system.start(agent)
    system.orchestrator.register_runner(agent)
    for cancels in (1, 2):
        task_id = await system.submit(agent)
        await system.reaches(task_id, "pending_tool_results")
        diary.entries.clear()
        for _ in range(cancels):
            assert await system.orchestrator.cancel_task(task_id) == "cancelled"
        assert diary.entries == ["run_cancelled 1"]
        agent_ctx, execution_ctx = diary.last["on_run_cancelled"]
        assert (execution_ctx.task_id, agent_ctx.messages[0]["content"]) == (task_id, "question")


async def test_spec_T04_what_a_callback_changes_is_kept(system: System, provider: Provider) -> None:
    def start(agent_ctx: AgentContext, execution_ctx: ExecutionContext) -> None:
        agent_ctx.started_by = execution_ctx.process  # type: ignore[attr-defined]

    async def end(agent_ctx: AgentContext, execution_ctx: ExecutionContext, completion: Any) -> None:
        agent_ctx.seen = completion.output  # type: ignore[attr-defined]

    provider.replies = ["Done."]
    agent = Agent(name="clerk", model=gpt_41, on_run_start=start, on_turn_end=end)
    await system.start(agent, process="p7")
    data = await system.ended(await system.submit(agent))
    assert (data["payload"]["started_by"], data["payload"]["seen"]) == ("p7", "Done.")


@pytest.mark.parametrize("name", ["on_run_start", "on_turn_start", "on_turn_end", "on_run_end"])
async def test_spec_T04_an_error_in_a_callback_is_logged_and_no_more(
    system: System, provider: Provider, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("broken callback")

    provider.replies = ["Done."]
    agent = Agent(name="clerk", model=gpt_41, **{name: broken})  # type: ignore[arg-type]
    await system.start(agent)
    task_id = await system.submit(agent)
    assert (await system.ended(task_id))["status"] == "completed"
    await wait_until(lambda: "broken callback" in caplog.text)
    assert task_id in caplog.text


@pytest.mark.parametrize("name", ["on_run_start", "on_turn_start", "on_turn_end", "on_pending_tool_call"])
async def test_spec_T04_a_fatal_error_in_a_callback_ends_the_run(system: System, provider: Provider, name: str) -> None:
    def fatal(*arguments: Any) -> None:
        raise FatalAgentError("not with me")

    provider.replies = [call("ask"), "Done."]
    agent = Agent(name="clerk", tools=[ask], model=gpt_41, **{name: fatal})  # type: ignore[arg-type]
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert (data["status"], data["error"]) == ("failed", "not with me")


async def test_spec_T04_a_run_that_is_taken_up_again_starts_once(system: System, provider: Provider) -> None:
    """Released in its first turn, by a process that drains."""
    diary = Diary()
    agent = Agent(name="clerk", model=gpt_41, **diary.callbacks())
    first = await system.start(agent, grace=1.5)
    task_id = await system.submit(agent)
    await provider.called()
    await first.drain()
    provider.replies = ["Done."]
    await system.start(agent)
    assert (await system.ended(task_id))["status"] == "completed"
    assert diary.entries.count("run_start 0") == 1 and diary.entries.count("turn_start 0") == 2


async def test_spec_T04_inline(provider: Provider) -> None:
    provider.replies = ["Done."]
    diary = Diary()
    agent = Agent(name="clerk", model=gpt_41, **diary.callbacks())
    await agent.run_inline(AgentContext(query="q"))
    assert diary.entries == ["run_start 0", "turn_start 0", "turn_end 1", "run_end 1"]
    provider.replies = None
    running = asyncio.create_task(agent.run_inline(AgentContext(query="q")))
    await provider.called()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert diary.entries[-1] == "run_cancelled 0"


@pytest.mark.parametrize(("name", "arguments"), NAMES.items())
def test_spec_T04_a_callback_that_cannot_be_called_is_refused(name: str, arguments: int) -> None:
    def too_many(a: int, b: int, c: int, d: int) -> None: ...

    for wrong in (too_many, "no function"):
        with pytest.raises(ConfigError, match=f"{name}=.* must be a function of {arguments} arguments"):
            Agent(name="clerk", **{name: wrong})  # type: ignore[arg-type]
