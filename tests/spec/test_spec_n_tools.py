"""Chapter N of PROMISES.md: the tools of the neighbouring pages. Real: Valkey, HTTP, the openai client. Fake: the
language model."""

import asyncio
from typing import Any

import pytest

import factorial
import factorial.tools
from factorial import Agent, AgentContext, Batch, ExecutionContext, deferred_tool, forking_tool, function_tool, tool
from factorial.errors import ConfigError
from factorial.testing import ScriptedModel, call, say
from tests.harness import System
from tests.spec.provider import Provider
from tests.support import wait_until

helper = Agent(name="helper", model=ScriptedModel(lambda messages: say(f"found {messages[-1]['content']}")))


async def test_spec_N01_tool_is_the_decorator_of_tools(system: System, provider: Provider) -> None:
    @tool(name="weather_lookup", description="Get detailed weather", is_enabled=lambda ctx: ctx.turn == 0)
    def get_weather(location: str) -> str:
        return f"Weather in {location}: sunny"

    @tool
    def get_time() -> str:
        """The time."""
        return "noon"

    provider.replies = [call("weather_lookup", location="Rome"), call("get_time"), "Sunny."]
    agent = Agent(name="a", tools=[get_weather, get_time], model=factorial.gpt_41)
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert [message["content"] for message in data["payload"]["messages"] if message["role"] == "tool"] == [
        "Weather in Rome: sunny", "noon",
    ]  # fmt: skip
    offered = [[one["function"]["name"] for one in request.body["tools"]] for request in provider.calls]
    assert offered == [["weather_lookup", "get_time"], ["get_time"], ["get_time"]]
    assert provider.calls[0].body["tools"][0]["function"]["description"] == "Get detailed weather"
    assert tool is function_tool is factorial.tools.tool


class Transfers:
    """The deferred tool of the page *tools*, which sends links by which a person decides."""

    def __init__(self) -> None:
        self.links: list[tuple[str, str]] = []

        @deferred_tool(timeout=60 * 60)
        async def request_fund_transfer(
            amount_cents: int, destination_account: str, execution_ctx: ExecutionContext
        ) -> None:
            """Request user approval to transfer funds."""
            assert execution_ctx.current_tool_call_id == execution_ctx.tool_call_id
            self.links.append((execution_ctx.task_id, execution_ctx.current_tool_call_id))

        self.agent = Agent(name="clerk", tools=[request_fund_transfer], model=factorial.gpt_41)


async def test_spec_N02_a_deferred_tool_waits_for_a_decision(system: System, provider: Provider) -> None:
    transfers = Transfers()
    ask = call("request_fund_transfer", amount_cents=5, destination_account="x")
    provider.replies = [ask, "Transferred."]
    await system.start(transfers.agent)
    task_id = await system.submit(transfers.agent)
    await system.reaches(task_id, "pending_tool_results")
    [(of_task, call_id)] = transfers.links
    assert of_task == task_id
    assert await system.orchestrator.complete_deferred_tool(
        task_id=task_id, tool_call_id=call_id, result={"status": "approved"}
    )
    data = await system.ended(task_id)
    assert data["payload"]["output"] == "Transferred."
    assert data["payload"]["messages"][2] == {
        "role": "tool", "tool_call_id": call_id, "content": '{"status":"approved"}',
    }  # fmt: skip


async def test_spec_N02_the_other_options_are_those_of_a_tool(provider: Provider) -> None:
    def make(**options: Any) -> Any:
        @deferred_tool(60, **options)
        def approve(question: str) -> None:
            """Ask."""

        return approve

    def offered(function: Any) -> Any:
        return [one.param["function"] for one in Agent(tools=[function]).resolve_tools(AgentContext(query="?"))]

    [shown] = offered(make(name="ask_boss", description="Ask the boss.", strict_json_schema=True))
    assert (shown["name"], shown["description"], shown["strict"]) == ("ask_boss", "Ask the boss.", True)
    assert [one["name"] for one in offered(make())] == ["approve"]
    assert offered(make(is_enabled=lambda ctx: ctx.turn > 0)) == []
    assert make()("now?") is None  # it is the function itself
    assert function_tool(name="ask")(make()).deferral is not None
    with pytest.raises(ConfigError, match=r"'approve' .* options from two decorators: give them to one"):
        function_tool(name="ask")(make(name="ask_boss"))
    with pytest.raises(ConfigError, match=r"deferred_tool\(timeout=0\)"):
        deferred_tool(0)
    with pytest.raises(ConfigError, match=r"write @deferred_tool\(timeout=60\), with parentheses"):
        deferred_tool(make)  # type: ignore[arg-type]


def shapes(batch: Batch) -> dict[str, Any]:
    """What a forking tool may return for the batch of two."""
    first, second = batch.task_ids
    return {
        "batch": batch,
        "id": first,
        "list": [first, second],
        "tuple": (first, second),
        "message and list": ("asked", [first, second]),
        "message and tuple": ("asked", (first, second)),
        "message and batch": ("asked", batch),
        "message and id": ("asked", first),
    }


@pytest.mark.parametrize("shape", shapes(Batch("b", ["1", "2"])))
async def test_spec_N03_what_a_forking_tool_may_return(system: System, provider: Provider, shape: str) -> None:
    expected: list[list[str]] = []

    @forking_tool(60, name="fan_out", description="Fan out", is_enabled=lambda ctx: not ctx.turn)
    async def fork(queries: list[str], execution_ctx: ExecutionContext) -> Any:
        payloads = [AgentContext(query=query) for query in queries]
        batch = await execution_ctx.spawn_child_tasks(helper, payloads)
        expected.append(batch.task_ids[: 1 if shape.endswith("id") else 2])
        return shapes(batch)[shape]

    provider.replies = [call("fan_out", queries=["a", "b"]), "Done."]
    agent = Agent(name="parent", tools=[fork], model=factorial.gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    data = await system.reaches(task_id, "pending_child_tasks")
    assert sorted(data["awaits"]) == sorted(f"child:{child}" for child in expected[0])
    await system.start(helper)
    content = (await system.ended(task_id))["payload"]["messages"][2]["content"]
    assert "found a" in content and content.startswith("asked\n") == shape.startswith("message")
    assert "tools" not in provider.calls[1].body  # it was enabled in the first turn only


@pytest.mark.parametrize("value", [None, 5, {"a": 1}, ("only a message",), ("a message", None), "no id at all!"])
async def test_spec_N03_anything_else_is_an_error_to_the_model(system: System, provider: Provider, value: Any) -> None:
    @forking_tool(timeout=60)
    def fork() -> Any:
        """Fork."""
        return value

    provider.replies = [call("fork"), "Done."]
    agent = Agent(name="parent", tools=[fork], model=factorial.gpt_41)
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert data["payload"]["messages"][2]["content"].startswith("Error: the forking tool 'fork' returned")
    assert data["status"] == "completed"


async def test_spec_N03_cancelling_the_parent_cancels_what_it_waits_for(system: System, provider: Provider) -> None:
    started = asyncio.Event()

    async def endless() -> None:
        """Never return."""
        started.set()
        await asyncio.Event().wait()

    child = Agent(name="child", tools=[endless], model=ScriptedModel([call("endless")]))
    spawned: list[str] = []

    @factorial.tools.forking_tool(timeout=600)
    async def research(query: str, execution_ctx: ExecutionContext) -> list[str]:
        """Spawn a subagent."""
        spawned.append(await execution_ctx.spawn_child_task(child, AgentContext(query=query)))
        return spawned

    provider.replies = [call("research", query="cats")]
    agent = Agent(name="parent", tools=[research], model=factorial.gpt_41)
    await system.start(agent)
    await system.start(child)
    task_id = await system.submit(agent)
    await system.reaches(task_id, "pending_child_tasks")
    await wait_until(started.is_set)
    assert await system.orchestrator.cancel_task(task_id) == "cancelled"
    assert (await system.ended(spawned[0]))["status"] == "cancelled"
