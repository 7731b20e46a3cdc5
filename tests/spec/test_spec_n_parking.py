"""Chapter N of PROMISES.md: agents that orchestrate without a model, and park by what their own `run_turn` returns.
Real: Valkey; HTTP and the openai client, where a model is called. Fake: the language model."""

import asyncio
from typing import Any

import pytest

from factorial import (
    Agent,
    AgentContext,
    BaseAgent,
    ExecutionContext,
    FatalAgentError,
    TurnCompletion,
    deferred_tool,
    gpt_41,
)
from factorial.errors import TaskError
from factorial.models import assistant_message
from factorial.testing import ScriptedModel, call, calls, say
from tests.harness import System
from tests.spec.provider import Provider, texts
from tests.sub_tasks import ends
from tests.support import wait_until


def reply(messages: Any) -> Any:
    """What a child says."""
    if messages[-1]["content"] == "fail":
        raise FatalAgentError("no such thing")
    return say(f"found {messages[-1]['content']}")


helper = Agent(name="helper", model=ScriptedModel(reply))


class Plan(AgentContext):
    """What an orchestrating agent knows."""

    topics: list[str] = ["cats"]  # noqa: RUF012  # pydantic gives each context a copy of a default
    children: list[str] = []  # noqa: RUF012
    results: dict[str, Any] = {}  # noqa: RUF012
    phase: str = "initial"


class Conductor(BaseAgent[Plan]):
    """Spawns a child for each topic, waits for them, and adds up. It asks no model."""

    def __init__(self) -> None:
        super().__init__(name="conductor", context_class=Plan)

    async def run_turn(self, agent_ctx: Plan) -> TurnCompletion[Plan]:
        if agent_ctx.phase == "waiting":
            return TurnCompletion(is_done=True, context=agent_ctx, output=agent_ctx.messages[-1]["content"])
        execution_ctx = ExecutionContext.current()
        agent_ctx.children = [
            await execution_ctx.spawn_child_task(helper, AgentContext(query=topic)) for topic in agent_ctx.topics
        ]
        agent_ctx.phase = "waiting"
        return TurnCompletion(is_done=False, context=agent_ctx, pending_child_task_ids=agent_ctx.children)


async def test_spec_N09_a_turn_waits_for_its_children_without_a_model(system: System) -> None:
    agent = Conductor()
    await system.start(agent)
    task_id = await system.submit(agent, Plan(query="go", topics=["cats", "fail"]))
    data = await system.reaches(task_id, "pending_child_tasks")
    children = data["payload"]["children"]
    assert sorted(data["awaits"]) == sorted(f"child:{child}" for child in children)
    pending = await system.event(task_id, "task_pending_child_task_results")
    assert pending["data"] == {"child_task_ids": children, "children": 2}
    await system.start(helper)
    data = await system.ended(task_id)
    assert (data["status"], data["payload"]["turn"], data["pickups"]) == ("completed", 2, 2)
    assert ends(data["payload"]["output"]) == [
        (children[0], "result", "found cats"), (children[1], "error", "no such thing"),
    ]  # fmt: skip


async def test_spec_N09_the_results_may_be_put_into_the_context(system: System) -> None:
    class Adder(Conductor):
        def process_child_task_results(
            self, agent_ctx: Plan, child_task_results: list[tuple[str, Any]]
        ) -> TurnCompletion[Plan]:
            agent_ctx.results = {
                child: str(end) if isinstance(end, TaskError) else end for child, end in child_task_results
            }
            return TurnCompletion(is_done=False, context=agent_ctx)

        async def run_turn(self, agent_ctx: Plan) -> TurnCompletion[Plan]:
            if agent_ctx.results:
                return TurnCompletion(is_done=True, context=agent_ctx, output=list(agent_ctx.results.values()))
            return await super().run_turn(agent_ctx)

    agent = Adder()
    await system.start(agent)
    await system.start(helper)
    data = await system.ended(await system.submit(agent, Plan(query="go", topics=["a", "b"])))
    assert data["payload"]["output"] == ["found a", "found b"]
    assert [message["role"] for message in data["payload"]["messages"]] == ["user"]


class Clerk(Agent):
    """Asks two people, by ids of its own, and waits for both."""

    ids: tuple[str, ...] = ("ask-ann", "ask-bob")
    asked: int = 0

    async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
        answers = {
            message["tool_call_id"]: message["content"] for message in agent_ctx.messages if message["role"] == "tool"
        }
        if answers:
            return TurnCompletion(is_done=True, context=agent_ctx, output=answers)
        self.asked += 1
        return TurnCompletion(is_done=False, context=agent_ctx, pending_tool_call_ids=list(self.ids))


async def test_spec_N09_a_turn_waits_for_results_by_ids_of_its_own(system: System) -> None:
    shown: list[Any] = []
    agent = Clerk(name="clerk", on_pending_tool_results=lambda ctx, execution, results: shown.extend(results))
    process = await system.start(agent)
    task_id = await system.submit(agent)
    data = await system.reaches(task_id, "pending_tool_results")
    await wait_until(lambda: not process.holds)
    assert sorted(data["awaits"]) == ["tool:ask-ann", "tool:ask-bob"]
    deliver = system.orchestrator.complete_deferred_tool
    assert await deliver(task_id, "ask-bob", {"status": "approved"})
    assert await deliver(task_id, "ask-carl", "?") is False
    assert await system.orchestrator.get_task_status(task_id) == "pending_tool_results"
    assert await deliver(task_id, "ask-ann", "yes")
    assert await deliver(task_id, "ask-ann", "no") is False
    data = await system.ended(task_id)
    assert data["payload"]["output"] == {"ask-ann": "yes", "ask-bob": '{"status":"approved"}'}
    assert shown == [("ask-ann", "yes"), ("ask-bob", {"status": "approved"})] and agent.asked == 1
    assert "progress_update_tool_action_completed" not in await system.types(task_id, progress=True)


async def test_spec_N09_results_and_children_together(system: System) -> None:
    class Both(Conductor):
        async def run_turn(self, agent_ctx: Plan) -> TurnCompletion[Plan]:
            completion = await super().run_turn(agent_ctx)
            if completion.is_done:
                completion.output = texts(agent_ctx.messages)
            else:
                completion.pending_tool_call_ids = ["approval"]
            return completion

    agent = Both()
    await system.start(agent)
    task_id = await system.submit(agent, Plan(query="go"))
    await system.reaches(task_id, "pending_tool_results")
    await system.orchestrator.complete_deferred_tool(task_id, "approval", "granted")
    await system.reaches(task_id, "pending_child_tasks")
    await system.start(helper)
    query, approval, shown = (await system.ended(task_id))["payload"]["output"]
    assert (query, approval) == ("user: go", "tool: granted") and "found cats" in shown


async def test_spec_N09_a_process_that_dies_spawns_nothing_twice(system: System) -> None:
    """The turn is taken again by another process, up to the same park."""
    gate = asyncio.Event()
    tries: list[list[str]] = []

    class Slow(Conductor):
        async def run_turn(self, agent_ctx: Plan) -> TurnCompletion[Plan]:
            completion = await super().run_turn(agent_ctx)
            if not completion.is_done:
                tries.append(agent_ctx.children)
                await gate.wait()
            return completion

    first = await system.start(Slow())
    task_id = await system.submit(Slow(), Plan(query="go", topics=["a", "b"]))
    await wait_until(lambda: tries)
    await first.kill()
    await (await system.mailbox()).reclaim_process(first.name)
    gate.set()
    await system.start(Slow())
    await system.start(helper)
    data = await system.ended(task_id)
    assert [end.text for end in ends(data["payload"]["output"])] == ["found a", "found b"]
    assert len(tries) == 2 and tries[0] == tries[1]
    assert len([one for one in await system.events() if one["event_type"] == "run_enqueued"]) == 3


async def test_spec_N09_a_call_of_the_model_that_the_agent_itself_leaves_open(
    system: System, provider: Provider
) -> None:
    """The agent asks the model, and handles the calls in its own way. The result answers the call."""

    class Own(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            response = await self.completion(agent_ctx, self.prepare_messages(agent_ctx))
            agent_ctx.messages.append(assistant_message(response))
            open_calls = response.choices[0].message.tool_calls or []
            return TurnCompletion(
                is_done=not open_calls,
                context=agent_ctx,
                output=response.choices[0].message.content,
                pending_tool_call_ids=[one.id for one in open_calls],
            )

    provider.replies = [calls(call("ask", who="ann"), call("ask", who="bob")), "Both agree."]
    agent = Own(name="own", model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    awaits = (await system.reaches(task_id, "pending_tool_results"))["awaits"]
    for number, key in enumerate(sorted(awaits)):
        await system.orchestrator.complete_deferred_tool(task_id, key.removeprefix("tool:"), f"yes {number}")
    data = await system.ended(task_id)
    assert texts(data["payload"]["messages"])[2:] == ["tool: yes 0", "tool: yes 1", "assistant: Both agree."]


async def test_spec_N09_a_model_that_is_asked_later_reads_the_results(system: System, provider: Provider) -> None:
    """No provider accepts a tool message without a call: it is sent as a message of the user."""

    class Late(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            if agent_ctx.turn == 0:
                return TurnCompletion(is_done=False, context=agent_ctx, pending_tool_call_ids=["approval"])
            return await super().run_turn(agent_ctx)

    provider.replies = ["I see."]
    agent = Late(name="late", model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    await system.reaches(task_id, "pending_tool_results")
    assert await system.orchestrator.complete_deferred_tool(task_id, "approval", "granted")
    data = await system.ended(task_id)
    assert data["payload"]["output"] == "I see."
    assert texts(data["payload"]["messages"]) == ["user: question", "tool: granted", "assistant: I see."]
    assert texts(provider.calls[0].messages) == ["user: question", "user: granted"]


async def test_spec_N09_a_deferred_call_that_the_agent_itself_makes(system: System, provider: Provider) -> None:
    """It calls the tools itself, and returns the ids of what is pending, and no results."""

    class Own(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            response = await self.completion(agent_ctx, self.prepare_messages(agent_ctx))
            agent_ctx.messages.append(assistant_message(response))
            made: list[Any] = list(response.choices[0].message.tool_calls or [])
            results = [await self.tool_action(one, agent_ctx) for one in made]
            return TurnCompletion(
                is_done=not made,
                context=agent_ctx,
                output=response.choices[0].message.content,
                pending_tool_call_ids=[result.tool_call_id for result in results if result.pending_result],
            )

    @deferred_tool(timeout=60)
    def approve() -> None:
        """Approve."""

    provider.replies = [call("approve"), "Approved."]
    agent = Own(name="own", tools=[approve], model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    [awaits] = (await system.reaches(task_id, "pending_tool_results"))["awaits"]
    assert await system.orchestrator.complete_deferred_tool(task_id, awaits.removeprefix("tool:"), "yes")
    assert texts((await system.ended(task_id))["payload"]["messages"])[2:] == ["tool: yes", "assistant: Approved."]


async def test_spec_N09_inline_children_are_waited_for_and_nobody_can_deliver() -> None:
    completion = await Conductor().run_inline(Plan(query="go", topics=["a"]))
    assert [end.text for end in ends(completion.output)] == ["found a"]
    with pytest.raises(FatalAgentError, match=r"'ask-ann' awaits a result from outside.*Orchestrator"):
        await Clerk(name="clerk").run_inline(AgentContext(query="go"))


@pytest.mark.parametrize("wrong", ["", "x" * 513, 5])
async def test_spec_N09_an_id_that_cannot_be_one_is_named(system: System, wrong: Any) -> None:
    class Odd(Clerk):
        ids = (wrong,)

    agent = Odd(name="odd")
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert data["status"] == "failed" and data["retries"] == 0
    assert f"Odd.run_turn awaits {wrong!r}"[:60] in data["error"]


async def test_spec_N09_a_task_that_it_has_not_spawned_is_unknown(system: System) -> None:
    class Stranger(Conductor):
        async def run_turn(self, agent_ctx: Plan) -> TurnCompletion[Plan]:
            if agent_ctx.turn:
                return TurnCompletion(is_done=True, context=agent_ctx, output=agent_ctx.messages[-1]["content"])
            return TurnCompletion(is_done=False, context=agent_ctx, pending_child_task_ids=["child_0_1"])

    agent = Stranger()
    await system.start(agent)
    data = await system.ended(await system.submit(agent, Plan(query="go")))
    [end] = ends(data["payload"]["output"])
    assert (end.task_id, end.kind) == ("child_0_1", "error")
