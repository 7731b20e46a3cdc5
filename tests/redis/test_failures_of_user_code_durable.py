"""Whatever the user's code raises affects only its own call, in a worker. Real: a worker's actors and Valkey.

`tests/unit/test_failures_of_user_code.py` has the same for inline runs, with random exceptions.
"""

import asyncio
import logging
from typing import Any

import pytest
from pydantic import field_validator

from factorial import Agent, AgentContext, BaseAgent, TurnCompletion
from factorial.testing import ScriptedModel, call, calls, say
from tests.harness import System, quick
from tests.support import wait_until

GROUP = BaseExceptionGroup("server gone", [asyncio.CancelledError(), ConnectionError("gone")])


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), GeneratorExit(), KeyboardInterrupt(), SystemExit(3), GROUP], ids=repr
)
@pytest.mark.parametrize("is_async", [False, True])
async def test_what_a_tool_raises_is_its_result(system: System, error: BaseException, is_async: bool) -> None:
    async def look() -> str:
        """Look."""
        raise error

    def look_plainly() -> str:
        """Look."""
        raise error

    tool = look if is_async else look_plainly
    agent = Agent(name="a", tools=[tool], model=ScriptedModel([call(tool.__name__), say("done")]))
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert (data["status"], data["retries"], data["pickups"]) == ("completed", 0, 1)
    assert data["payload"]["messages"][2]["content"].startswith(f"Error: {type(error).__name__}")


async def test_a_tool_that_cancels_its_asyncio_task_over_and_over_does_not_reach_its_run(system: System) -> None:
    """As a cancel scope does that was never left: an MCP client whose server went away."""

    async def look() -> str:
        """Look."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def again() -> None:
            if not task.done():
                task.cancel()
                loop.call_soon(again)

        again()
        await asyncio.Event().wait()
        return "never"

    async def other() -> str:
        """Look elsewhere."""
        await asyncio.sleep(0.05)
        return "seen"

    script = ScriptedModel([calls(call("look"), call("other")), say("done")])
    agent = Agent(name="a", tools=[look, other], model=script)
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert (data["status"], data["retries"]) == ("completed", 0)
    answers = [message["content"] for message in data["payload"]["messages"] if message["role"] == "tool"]
    assert answers == ["Error: CancelledError", "seen"]


@pytest.mark.parametrize("place", ["run_turn", "on_turn_start"])
async def test_code_of_the_agent_that_cancels_its_asyncio_task_fails_the_attempt(system: System, place: str) -> None:
    tried: list[str] = []

    async def cancel_once(*arguments: Any) -> None:
        if not tried:
            tried.append(place)
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    class Strange(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            if place == "run_turn":
                await cancel_once()
            return TurnCompletion(is_done=True, context=agent_ctx, output="well")

    agent = Strange(name="a", on_turn_start=cancel_once if place == "on_turn_start" else None)
    await system.start(agent)
    task_id = await system.submit(agent)
    assert (await system.ended(task_id))["status"] == "completed"
    error = (await system.event(task_id, "task_failed"))["error"]
    assert error == ("run_turn" if place == "run_turn" else "callback cancel_once") + " was cancelled from within"
    assert (await system.types(task_id)).count("task_retried") == 1


async def test_the_error_with_which_a_tool_answers_a_release_is_not_its_result(system: System) -> None:
    """The process has to leave at once and cancels the tool, which raises something else. The next process calls it."""
    started: list[str] = []

    async def look() -> str:
        """Look."""
        started.append("look")
        if len(started) == 1:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise ConnectionError("it went away") from None
        return "seen"

    agent = Agent(name="a", tools=[look], model=ScriptedModel([call("look"), say("done")]))
    first = await system.start(agent)
    task_id = await system.submit(agent)
    await wait_until(lambda: started)
    first.lifeline.leaving.set()
    await first.drain()
    await system.start(agent)
    data = await system.ended(task_id)
    assert (data["status"], data["retries"], data["pickups"]) == ("completed", 0, 2)
    assert data["payload"]["messages"][2]["content"] == "seen"


class Checked(AgentContext):
    """A context whose validator asks a service that may be away."""

    customer: str = ""

    @field_validator("customer")
    @classmethod
    def _known(cls, customer: str) -> str:
        if FAILURES and customer:
            raise FAILURES.pop()
        return customer


FAILURES: list[BaseException] = []


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), KeyError("no answer")], ids=repr)
async def test_what_a_validator_of_the_context_raises_when_it_is_loaded_counts_as_a_retry(
    system: System, error: BaseException
) -> None:
    agent = BaseAgent[Checked](name="a", context_class=Checked, model=ScriptedModel([say("done")]))
    task = await system.orchestrator.enqueue_task(agent, owner_id="owner", payload=Checked(query="q", customer="ada"))
    FAILURES.append(error)
    await system.start(agent, quick(max_retries=1))
    assert (await system.ended(task.id))["status"] == "completed"
    assert (
        f"a validator of Checked raised {type(error).__name__}" in (await system.event(task.id, "task_failed"))["error"]
    )
    assert [name for name in await system.types(task.id) if name.startswith("task_")] == ["task_failed", "task_retried"]


async def test_a_validator_that_always_raises_ends_the_run_after_its_retries(system: System) -> None:
    agent = BaseAgent[Checked](name="a", context_class=Checked, model=ScriptedModel([say("done")]))
    task = await system.orchestrator.enqueue_task(agent, owner_id="owner", payload=Checked(query="q", customer="ada"))
    FAILURES.extend(KeyError(str(number)) for number in range(9))
    try:
        await system.start(agent, quick(max_retries=2))
        data = await system.ended(task.id)
    finally:
        FAILURES.clear()
    assert (data["status"], data["error"]) == ("failed", "a validator of Checked raised KeyError: '6'")


async def test_what_the_callback_of_cancel_task_raises_is_logged(
    system: System, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*arguments: Any) -> None:
        raise asyncio.CancelledError

    agent = Agent(name="a", model=ScriptedModel([say("done")]), on_run_cancelled=broken)
    system.orchestrator.register_runner(agent)
    with caplog.at_level(logging.WARNING):
        assert await system.orchestrator.cancel_task(await system.submit(agent)) == "cancelled"
    assert "callback broken was cancelled from within" in caplog.text
