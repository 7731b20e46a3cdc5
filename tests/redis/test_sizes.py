"""Queries, results of tools and outputs that are too large. Real: actors, mailbox, Valkey. Fake: the model, which is
scripted."""

from typing import Any

import pytest

from factorial import Agent, AgentContext, deferred_tool
from factorial._core.sizes import MOST_BYTES
from factorial.errors import ContextError
from factorial.testing import ScriptedModel, call, say
from tests.harness import System

LARGE = "ä" * (MOST_BYTES // 2 + 1)
KEEP = "keep large data elsewhere, and use a reference to it, such as a path or a URL"


async def test_a_query_that_is_too_large_is_refused_and_nothing_is_stored(system: System) -> None:
    agent = Agent(name="reader", model=ScriptedModel([say("done")]))
    task = agent.create_task("owner", AgentContext(query=LARGE))
    with pytest.raises(ContextError) as refused:
        await system.orchestrator.enqueue_task(agent, task)
    size = f"takes {MOST_BYTES + 4} bytes, and {MOST_BYTES} is the most"
    assert str(refused.value) == f"AgentContext.query as JSON {size}: {KEEP}"
    assert await system.orchestrator.get_task_data(task.id) is None


@pytest.mark.parametrize("value", [LARGE, {"text": LARGE}, ("short", [LARGE])], ids=["text", "data", "hidden data"])
async def test_a_result_that_is_too_large_is_an_error_of_its_call(system: System, value: Any) -> None:
    def fetch() -> Any:
        """Fetch it all."""
        return value

    agent = Agent(name="fetching", tools=[fetch], model=ScriptedModel([call("fetch"), say("too much")]))
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert (data["status"], data["retries"], data["payload"]["output"]) == ("completed", 0, "too much")
    [result] = [message["content"] for message in data["payload"]["messages"] if message["role"] == "tool"]
    assert f"bytes, and {MOST_BYTES} is the most: {KEEP}" in result
    assert len(result) < 1000


async def test_a_result_from_outside_that_is_too_large_is_refused_and_awaited_further(system: System) -> None:
    @deferred_tool(timeout=60)
    async def ask() -> None:
        """Ask somebody."""

    agent = Agent(name="asking", tools=[ask], model=ScriptedModel([call("ask"), say("done")]))
    await system.start(agent)
    task_id = await system.submit(agent)
    data = await system.reaches(task_id, "pending_tool_results")
    [awaited] = [key.removeprefix("tool:") for key in data["awaits"]]
    with pytest.raises(ContextError, match=f"the result of tool call '{awaited}' takes {MOST_BYTES + 2} bytes, and"):
        await system.orchestrator.complete_deferred_tool(task_id, awaited, LARGE)
    assert await system.orchestrator.complete_deferred_tool(task_id, awaited, "short")
    assert (await system.ended(task_id))["status"] == "completed"


async def test_an_output_that_is_too_large_fails_the_run(system: System) -> None:
    agent = Agent(name="talking", model=ScriptedModel([say(LARGE)]))
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert data["status"] == "failed"
    assert f"the output as JSON takes {MOST_BYTES + 4} bytes, and {MOST_BYTES} is the most: {KEEP}" in data["error"]
