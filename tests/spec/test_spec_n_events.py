"""Chapter N of PROMISES.md: what web pages read of the ends of tool calls, and the check of a model's answer. Real:
Valkey, HTTP, the openai client. Fake: the language model."""

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from factorial import Agent, AgentContext, Batch, ExecutionContext, deferred_tool, forking_tool, gpt_41
from factorial.errors import FatalAgentError, InvalidLLMResponseError
from factorial.events import MAX_EVENT_DATA, MAX_EVENT_TOTAL
from factorial.testing import ScriptedModel, call, calls, say
from tests.harness import System, quick
from tests.spec.provider import Provider

helper = Agent(name="helper", model=ScriptedModel([say("found")]))


async def ends(system: System, task_id: str) -> list[dict[str, Any]]:
    """The events about the ends of the task's tool calls."""
    prefix = "progress_update_tool_action_"
    events = [one for one in await system.events(task_id) if one["event_type"].startswith(prefix)]
    return [one for one in events if not one["event_type"].endswith("_started")]


async def test_spec_N10_the_end_of_a_call_has_the_call_and_its_result(system: System, provider: Provider) -> None:
    def plan(overview: str, steps: list[str]) -> tuple[str, dict[str, Any]]:
        """Plan."""
        return f"{overview}: {len(steps)} steps", {"overview": overview, "steps": steps}

    def nothing() -> None:
        """Nothing."""

    provider.replies = [calls(call("plan", overview="go", steps=["a", "b"]), call("nothing")), "Done."]
    agent = Agent(name="a", tools=[plan, nothing], model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    made = (await system.ended(task_id))["payload"]["messages"][1]["tool_calls"]
    by_id = {one["data"]["result"]["tool_call"]["id"]: one["data"] for one in await ends(system, task_id)}
    assert by_id.keys() == {one["id"] for one in made}
    first = by_id[made[0]["id"]]
    assert first["result"] == {
        "tool_call": first["args"][0], "output_str": "go: 2 steps",
        "output_data": {"overview": "go", "steps": ["a", "b"]},
    }  # fmt: skip
    assert first["result"]["tool_call"]["function"]["name"] == "plan"
    about_the_call = {
        "tool_name": "plan",
        "tool_call_id": made[0]["id"],
        "arguments": {"overview": "go", "steps": ["a", "b"]},
    }
    assert first.keys() == {"args", "kwargs", "context", "result"} | about_the_call.keys()
    assert {name: first[name] for name in about_the_call} == about_the_call
    assert by_id[made[1]["id"]]["result"]["output_data"] is None


async def test_spec_N10_a_failed_call_has_an_error_and_no_result(system: System, provider: Provider) -> None:
    def refuse() -> None:
        """Refuse."""
        raise ValueError("no")

    provider.replies = [call("refuse"), "Done."]
    agent = Agent(name="a", tools=[refuse], model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    await system.ended(task_id)
    [failed] = await ends(system, task_id)
    assert failed["event_type"] == "progress_update_tool_action_failed" and failed["error"] == "ValueError: no"
    assert failed["data"]["args"][0]["function"]["name"] == "refuse" and "result" not in failed["data"]


@pytest.mark.parametrize("batches", [1, 2])
async def test_spec_N10_a_forking_call_ends_with_the_spawn_and_a_deferred_one_with_its_result(
    system: System, provider: Provider, batches: int
) -> None:
    @forking_tool(timeout=60)
    async def research(queries: list[str], execution_ctx: ExecutionContext) -> Any:
        """Research."""
        spawned = [
            await execution_ctx.spawn_child_tasks(helper, [AgentContext(query=query) for query in queries])
            for _ in range(batches)
        ]
        return spawned if batches > 1 else spawned[0]

    @deferred_tool(timeout=60)
    def approve() -> None:
        """Approve."""

    provider.replies = [calls(call("research", queries=["a", "b"]), call("approve")), "Done."]
    agent = Agent(name="a", tools=[research, approve], model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    awaits = (await system.reaches(task_id, "pending_tool_results"))["awaits"]
    children = [key.removeprefix("child:") for key in awaits if key.startswith("child:")]
    [spawned] = await ends(system, task_id)
    assert spawned["event_type"] == "progress_update_tool_action_completed"
    result = spawned["data"]["result"]
    assert result["tool_call"]["function"]["name"] == "research" and len(children) == 2 * batches
    assert sorted(result["output_data"]) == sorted(children)
    call_id = next(key.removeprefix("tool:") for key in awaits if key.startswith("tool:"))
    await system.orchestrator.complete_deferred_tool(task_id, call_id, {"status": "approved"})
    await system.start(helper)
    await system.ended(task_id)
    again, delivered = await ends(system, task_id)
    assert again == spawned and delivered["data"]["result"]["output_data"] == {"status": "approved"}
    assert delivered["data"]["result"]["output_str"] == '{"status":"approved"}'
    assert delivered["data"]["result"]["tool_call"]["id"] == call_id
    for child in children:
        assert (await system.types(child))[-1] == "run_completed"


@pytest.mark.parametrize("size", [MAX_EVENT_TOTAL - 2, MAX_EVENT_TOTAL - 1])
async def test_spec_N10_data_above_the_limit_is_replaced_as_a_whole(
    system: System, provider: Provider, size: int
) -> None:
    data = {"": "x" * (size - len('{"":""}') + 2)}

    def look() -> tuple[str, dict[str, str]]:
        """Look."""
        return "y" * 2 * MAX_EVENT_DATA, data

    provider.replies = [call("look"), "Done."]
    agent = Agent(name="a", tools=[look], model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    await system.ended(task_id)
    [end] = await ends(system, task_id)
    length = len(json.dumps(data, separators=(",", ":")))
    whole = data if length <= MAX_EVENT_TOTAL else {"truncated": True, "size": length}
    assert end["data"]["result"]["output_data"] == whole and (length > MAX_EVENT_TOTAL) == (size == MAX_EVENT_TOTAL - 1)
    assert end["data"]["result"]["output_str"].startswith("y" * MAX_EVENT_DATA + "…")


async def test_spec_N10_a_thousand_children_are_all_listed(system: System, provider: Provider) -> None:
    batch: list[Batch] = []

    @forking_tool(timeout=60)
    async def research(execution_ctx: ExecutionContext) -> list[str]:
        """Research."""
        batch.append(await execution_ctx.spawn_child_tasks(helper, [AgentContext(query="?")] * 1000))
        return batch[0].task_ids

    provider.replies = [call("research")]
    agent = Agent(name="a", tools=[research], model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    await system.reaches(task_id, "pending_child_tasks")
    [end] = await ends(system, task_id)
    assert end["data"]["result"]["output_data"] == batch[0].task_ids
    await system.orchestrator.cancel_task(task_id)


# -- N11


async def test_spec_N11_an_answer_that_is_rejected_is_a_failed_model_call(system: System, provider: Provider) -> None:
    seen: list[str | None] = []

    class Picky(Agent):
        def validate_completion(self, agent_ctx: AgentContext, response: ChatCompletion) -> None:
            seen.append(response.choices[0].message.content)
            if "please" not in (response.choices[0].message.content or ""):
                raise InvalidLLMResponseError("say please")

    answers = iter(["No.", "Yes, please."])
    provider.replies = lambda messages: next(answers)
    agent = Picky(name="picky", model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    data = await system.ended(task_id)
    assert (data["payload"]["output"], seen) == ("Yes, please.", ["No.", "Yes, please."])
    assert [message["role"] for message in data["payload"]["messages"]] == ["user", "assistant"]
    events = [one for one in await system.events(task_id) if "completion" in one["event_type"]]
    assert [one["event_type"].removeprefix("progress_update_completion_") for one in events] == [
        "started", "failed", "started", "completed",
    ]  # fmt: skip
    assert events[1]["error"] == "say please"
    assert "task_retried" in await system.types(task_id)


async def test_spec_N11_it_is_retried_like_any_failed_call_and_may_end_the_run(
    system: System, provider: Provider
) -> None:
    class Strict(Agent):
        async def validate_completion(self, agent_ctx: AgentContext, response: ChatCompletion) -> None:
            raise FatalAgentError("never") if agent_ctx.query == "end" else ValueError("not this one")

    provider.replies = lambda messages: "hello"
    agent = Strict(name="strict", model=gpt_41)
    await system.start(agent, quick(max_retries=2))
    data = await system.ended(await system.submit(agent))
    assert (data["status"], data["retries"], len(provider.calls)) == ("failed", 2, 3)
    assert "not this one" in data["error"]
    data = await system.ended(await system.submit(agent, "end"))
    assert (data["status"], data["retries"], len(provider.calls)) == ("failed", 0, 4)


async def test_spec_N11_it_sees_what_an_own_completion_returns() -> None:
    seen: list[str | None] = []

    class Relay(Agent):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> ChatCompletion:
            answer = await super().completion(agent_ctx, messages)
            answer.choices[0].message.content = f"<{answer.choices[0].message.content}>"
            return answer

        def validate_completion(self, agent_ctx: AgentContext, response: ChatCompletion) -> None:
            seen.append(response.choices[0].message.content)

    agent = Relay(name="relay", model=ScriptedModel([say("hello")]))
    assert (await agent.run_inline(AgentContext(query="?"))).output == "<hello>"
    assert seen == ["<hello>"]
