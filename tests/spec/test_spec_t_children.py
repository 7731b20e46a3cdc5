"""Chapter T of PROMISES.md: tasks that spawn tasks, and wait for them. Real: Valkey, HTTP, the openai client. Fake:
the language model."""

import asyncio
from typing import Any

import pytest

from factorial import Agent, AgentContext, Batch, ExecutionContext, FatalAgentError, forking_tool, gpt_41
from factorial.config import MaintenanceWorkerConfig
from factorial.errors import ConfigError
from factorial.events import BaseEvent
from factorial.testing import ScriptedModel, call, calls, say
from tests.harness import System, quick, tidy
from tests.spec.provider import Provider, texts
from tests.sub_tasks import End, ends, outputs
from tests.support import wait_until

helper = Agent(name="helper", model=ScriptedModel(lambda messages: say(f"found {messages[-1]['content']}")))


class Parent:
    """An agent whose tool `research` spawns a child for each topic, and waits for them."""

    def __init__(self, child: Agent = helper, timeout: float = 60, **options: Any) -> None:
        self.batches: list[Batch] = []

        @forking_tool(timeout=timeout)
        async def research(topics: list[str], execution_ctx: ExecutionContext) -> Batch:
            """Have each topic looked into."""
            batch = await execution_ctx.spawn_child_tasks(child, [AgentContext(query=topic) for topic in topics])
            self.batches.append(batch)
            return batch

        self.agent = Agent(name="parent", tools=[research], model=gpt_41, **options)


def research(*topics: str) -> Any:
    return call("research", topics=list(topics))


async def results(system: System, task_id: str, at: int = 2) -> list[End]:
    """What the parent's model was shown of its children."""
    return ends((await system.ended(task_id))["payload"]["messages"][at]["content"])


async def test_spec_T03_the_parent_waits_for_its_children(system: System, provider: Provider) -> None:
    provider.replies = [research("cats", "dogs"), "Both sleep."]
    parent = Parent()
    process = await system.start(parent.agent)
    task_id = await system.submit(parent.agent)
    data = await system.reaches(task_id, "pending_child_tasks")
    (batch,) = parent.batches
    await wait_until(lambda: not process.holds)
    assert sorted(data["awaits"]) == sorted(f"child:{child}" for child in batch.task_ids)
    assert (await system.data(batch.task_ids[0]))["parent_id"] == task_id
    await system.start(helper)
    assert await results(system, task_id) == [
        (batch.task_ids[0], "result", "found cats"),
        (batch.task_ids[1], "result", "found dogs"),
    ]
    data = await system.ended(task_id)
    assert (data["payload"]["output"], data["payload"]["turn"], data["pickups"]) == ("Both sleep.", 2, 2)
    pending = await system.event(task_id, "task_pending_child_task_results")
    assert pending["data"] == {"child_task_ids": batch.task_ids, "children": 2}
    enqueued = await system.event(batch.task_ids[0], "run_enqueued")
    assert enqueued["metadata"] == {"parent_id": task_id, "batch_id": batch.id} and enqueued["owner_id"] == "owner"


async def test_spec_T03_one_child(system: System, provider: Provider) -> None:
    spawned: list[str] = []

    @forking_tool(timeout=60)
    async def delegate(topic: str, execution_ctx: ExecutionContext) -> tuple[str, list[str]]:
        """Have somebody else look."""
        spawned.append(await execution_ctx.spawn_child_task(helper, AgentContext(query=topic)))
        return "I have asked the helper.", spawned

    provider.replies = [call("delegate", topic="cats"), "Done."]
    agent = Agent(name="parent", tools=[delegate], model=gpt_41)
    await system.start(agent)
    await system.start(helper)
    task_id = await system.submit(agent)
    text, _, listing = (await system.ended(task_id))["payload"]["messages"][2]["content"].partition("\n")
    assert text == "I have asked the helper."
    assert ends(listing) == [(spawned[0], "result", "found cats")]
    assert (await system.data(spawned[0]))["batch_id"] is None


async def test_spec_T03_a_thousand_in_one_batch(system: System, provider: Provider) -> None:
    provider.replies = [research(*(str(number) for number in range(1000))), "All found."]
    parent = Parent()
    await system.start(parent.agent)
    await system.start(helper, quick(batch_size=100))
    await system.start(helper, quick(batch_size=100))
    task_id = await system.submit(parent.agent)
    data = await system.ended(task_id, timeout=120)
    shown = ends(data["payload"]["messages"][2]["content"])
    assert [end.text for end in shown] == [f"found {number}" for number in range(1000)]
    (batch,) = parent.batches
    assert [end.task_id for end in shown] == batch.task_ids and data["pickups"] == 2
    progress = [event for event in await system.events(task_id) if event["event_type"] == "batch_progress"]
    assert [event["progress"] for event in progress] == list(range(1, 101))
    assert [event["completed_tasks"] for event in progress] == list(range(10, 1001, 10))
    assert {(event["batch_id"], event["total_tasks"]) for event in progress} == {(batch.id, 1000)}
    assert (await system.event(task_id, "batch_completed"))["status"] == "completed"
    assert await system.orchestrator.get_batch_data(batch.id) == {
        "id": batch.id, "total_tasks": 1000, "completed_tasks": 1000, "progress": 100.0,
        "status": "completed", "completed": 1000, "failed": 0, "cancelled": 0,
    }  # fmt: skip


async def test_spec_T03_the_progress_of_a_small_batch_is_told_task_by_task(system: System, provider: Provider) -> None:
    """Each with how far it is; the last one, and the end, before the parent goes on. A failed one counts as ended."""

    def reply(messages: Any) -> Any:
        if messages[-1]["content"] == "b":
            raise FatalAgentError("no such thing")
        return say("well")

    child = Agent(name="child", model=ScriptedModel(reply))
    provider.replies = [research("a", "b", "c"), "Done."]
    parent = Parent(child)
    await system.start(parent.agent)
    await system.start(child, quick(batch_size=1))
    task_id = await system.submit(parent.agent)
    await system.ended(task_id)
    published = [one for one in await system.events(task_id) if one["event_type"].startswith("batch_")]
    assert [
        (one["event_type"], one["progress"], one["completed_tasks"], one["total_tasks"], one["status"])
        for one in published
    ] == [
        ("batch_progress", 33, 1, 3, "active"),
        ("batch_progress", 66, 2, 3, "active"),
        ("batch_progress", 100, 3, 3, "completed"),
        ("batch_completed", 100, 3, 3, "completed"),
    ]
    (batch,) = parent.batches
    assert {(one["batch_id"], one["agent_name"], one["owner_id"]) for one in published} == {
        (batch.id, "parent", "owner")
    }
    types = await system.types(task_id, progress=True)
    assert types.index("progress_update_tool_action_completed") < types.index("batch_completed")


async def test_spec_T03_three_deep(system: System, provider: Provider) -> None:
    """Each level spawns two, and the events of all are the owner's."""

    def reply(messages: list[dict[str, Any]]) -> Any:
        query = messages[0]["content"]
        if query.count("/") == 3:
            return say(f"leaf {query}")
        if len(messages) == 1:
            return research(f"{query}/a", f"{query}/b")
        return say(f"{query}: {', '.join(outputs(messages[2]['content']))}")

    provider.replies = reply
    lower = Parent(Agent(name="leaf", model=gpt_41))
    lower.agent.name = "lower"
    middle = Parent(lower.agent)
    middle.agent.name = "middle"
    top = Parent(middle.agent)
    for agent in (top.agent, middle.agent, lower.agent, Agent(name="leaf", model=gpt_41)):
        await system.start(agent)
    task_id = await system.submit(top.agent, "q")
    data = await system.ended(task_id, timeout=60)
    assert data["payload"]["output"] == (
        "q: q/a: q/a/a: leaf q/a/a/a, leaf q/a/a/b, q/a/b: leaf q/a/b/a, leaf q/a/b/b, "
        "q/b: q/b/a: leaf q/b/a/a, leaf q/b/a/b, q/b/b: leaf q/b/b/a, leaf q/b/b/b"
    )
    assert len({event["task_id"] for event in await system.events()}) == 1 + 2 + 4 + 8


async def test_spec_T03_mixed_agents_in_one_turn_with_an_ordinary_tool(system: System, provider: Provider) -> None:
    other = Agent(name="other", model=ScriptedModel(lambda messages: say("other says so")))

    @forking_tool(timeout=60)
    async def ask_both(execution_ctx: ExecutionContext) -> list[Any]:
        """Ask two kinds of helpers."""
        batch = await execution_ctx.spawn_child_tasks(helper, [AgentContext(query="x"), AgentContext(query="y")])
        return [await execution_ctx.spawn_child_task(other, AgentContext(query="z")), batch]

    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    provider.replies = [
        calls(call("add", a=1, b=1), call("ask_both"), call("add", a=2, b=2), call("ask_both")),
        "Done.",
    ]
    agent = Agent(name="parent", tools=[ask_both, add], model=gpt_41)
    for started in (agent, helper, other):
        await system.start(started)
    sent = (await system.ended(await system.submit(agent)))["payload"]["messages"]
    assert [message["tool_call_id"] for message in sent[2:6]] == [one["id"] for one in sent[1]["tool_calls"]]
    assert (sent[2]["content"], sent[4]["content"]) == ("2", "4")
    for at in (3, 5):
        assert outputs(sent[at]["content"]) == ["other says so", "found x", "found y"]
    ids = [end.task_id for at in (3, 5) for end in ends(sent[at]["content"])]
    assert len(set(ids)) == 6


async def test_spec_T03_failed_cancelled_and_expired_children(system: System, provider: Provider) -> None:
    def reply(messages: Any) -> Any:
        match messages[-1]["content"]:
            case "fail":
                raise FatalAgentError("no such thing")
            case "hang":
                return call("wait")
        return say("well")

    async def wait() -> None:
        """Wait for ever."""
        await asyncio.Event().wait()

    child = Agent(name="child", model=ScriptedModel(reply), tools=[wait])
    provider.replies = [research("fail", "hang", "hang", "good"), "Done."]
    parent = Parent(child, timeout=4)
    await system.start(parent.agent)
    await system.start(child)
    task_id = await system.submit(parent.agent)
    await wait_until(lambda: parent.batches)
    ids = parent.batches[0].task_ids
    await system.reaches(ids[1], "processing")
    await system.orchestrator.cancel_task(ids[1])
    shown = await results(system, task_id)
    assert "no such thing" in shown[0].text
    assert [(end.kind, end.text) for end in shown[1:]] == [
        ("error", "the task was cancelled"),
        ("error", "the task had not ended within 4 seconds, and was cancelled"),
        ("result", "well"),
    ]
    # A child whose result is not awaited any longer costs no further model call.
    assert (await system.ended(ids[2]))["status"] == "cancelled"
    assert (await system.event(task_id, "batch_completed"))["completed_tasks"] == 4
    counts = await system.orchestrator.get_batch_data(parent.batches[0].id)
    assert counts and (counts["completed"], counts["failed"], counts["cancelled"]) == (1, 1, 2)


async def test_spec_T03_a_parked_parent_learns_at_once_that_its_child_has_failed(
    system: System, provider: Provider
) -> None:
    """And not only when it has waited for as long as it would."""

    def fail(messages: Any) -> Any:
        raise FatalAgentError("no such thing")

    child = Agent(name="child", model=ScriptedModel(fail))
    provider.replies = [research("cats"), "Done."]
    parent = Parent(child, timeout=3600)
    await system.start(parent.agent)
    task_id = await system.submit(parent.agent)
    await system.reaches(task_id, "pending_child_tasks")
    await system.start(child)
    [end] = await results(system, task_id)
    assert end.kind == "error" and "no such thing" in end.text


async def test_spec_T03_children_that_end_before_the_park(system: System, provider: Provider) -> None:
    @forking_tool(timeout=60)
    async def quick_ones(execution_ctx: ExecutionContext) -> Batch:
        """Ask, and look out of the window until they are back."""
        batch = await execution_ctx.spawn_child_tasks(helper, [AgentContext(query=topic) for topic in "ab"])
        for task_id in batch.task_ids:
            await system.ended(task_id)
        return batch

    provider.replies = [call("quick_ones"), "Done."]
    agent = Agent(name="parent", tools=[quick_ones], model=gpt_41)
    await system.start(agent)
    await system.start(helper)
    task_id = await system.submit(agent)
    assert [end.text for end in await results(system, task_id)] == ["found a", "found b"]
    assert (await system.data(task_id))["pickups"] == 1
    assert "task_pending_child_task_results" not in await system.types(task_id)


async def test_spec_T03_a_child_whose_record_is_gone_is_unknown(system: System, provider: Provider) -> None:
    @forking_tool(timeout=60)
    def somebody_elses(execution_ctx: ExecutionContext) -> list[str]:
        """Wait for tasks that are not mine."""
        return ["0123456789abcdef0123456789abcdef"]

    provider.replies = [call("somebody_elses"), "Done."]
    agent = Agent(name="parent", tools=[somebody_elses], model=gpt_41)
    await system.start(agent)
    [end] = await results(system, await system.submit(agent))
    assert (end.kind, end.text) == ("error", "there is no such task, or this task has not spawned it")


@pytest.mark.parametrize("value", [None, 5, ["not an id!"], {"a": 1}])
async def test_spec_T03_what_a_forking_tool_may_return(system: System, provider: Provider, value: Any) -> None:
    @forking_tool(timeout=60)
    def fork() -> Any:
        """Fork."""
        return value

    provider.replies = [call("fork"), "Done."]
    agent = Agent(name="parent", tools=[fork], model=gpt_41)
    await system.start(agent)
    sent = (await system.ended(await system.submit(agent)))["payload"]["messages"]
    assert sent[2]["content"].startswith("Error: the forking tool 'fork' returned")


async def test_spec_T03_no_children_are_no_wait(system: System, provider: Provider) -> None:
    provider.replies = [research(), "Done."]
    parent = Parent()
    await system.start(parent.agent)
    assert await results(system, await system.submit(parent.agent)) == []


async def test_spec_T03_a_repeated_step_spawns_nothing_twice(system: System, provider: Provider) -> None:
    """The process dies after it has spawned, and before the tool has returned."""
    parent = Parent()
    gate = asyncio.Event()
    seen: list[Batch] = []

    @forking_tool(timeout=60)
    async def research_slowly(topics: list[str], execution_ctx: ExecutionContext) -> Batch:
        """Spawn, and be slow to return."""
        payloads = [AgentContext(query=topic) for topic in topics]
        seen.append(await execution_ctx.spawn_child_tasks(helper, payloads[:2]))
        seen.append(await execution_ctx.spawn_child_tasks(helper, payloads[2:]))
        await gate.wait()
        return Batch("both", seen[-1].task_ids + seen[-2].task_ids)

    provider.replies = [call("research_slowly", topics=["a", "b", "c"]), "Done."]
    agent = Agent(name="slow_parent", tools=[research_slowly], model=gpt_41)
    first = await system.start(agent)
    await system.start(helper)
    task_id = await system.submit(agent)
    await wait_until(lambda: len(seen) == 2)
    await first.kill()
    await (await system.mailbox()).reclaim_process(first.name)
    gate.set()
    await system.start(agent)
    shown = await results(system, task_id)
    assert seen[2:] == seen[:2] and len({end.task_id for end in shown}) == 3
    enqueued = [event for event in await system.events() if event["event_type"] == "run_enqueued"]
    assert len(enqueued) == 4 and parent.batches == []


async def test_spec_T03_cancelling_the_parent_cancels_all_below_it(system: System, provider: Provider) -> None:
    """Some are executed, some wait in the queue, one is parked itself and has children."""
    gate = asyncio.Event()

    async def wait() -> str:
        """Wait."""
        await gate.wait()
        return "waited"

    leaf = Agent(name="leaf", tools=[wait], model=ScriptedModel([call("wait"), say("done")]))
    inner = Parent(leaf)
    inner.agent.name = "inner"
    outer = Parent(inner.agent)
    provider.replies = [research("x", "y"), "Done."]
    await system.start(outer.agent)
    await system.start(inner.agent)
    await system.start(leaf, quick(batch_size=1))
    task_id = await system.submit(outer.agent)
    await wait_until(lambda: len(inner.batches) == 2)
    for inner_id in outer.batches[0].task_ids:
        await system.reaches(inner_id, "pending_child_tasks")
    assert await system.orchestrator.cancel_task(task_id) == "cancelled"
    below = [*outer.batches[0].task_ids, *(child for batch in inner.batches for child in batch.task_ids)]
    for child in below:
        assert (await system.ended(child))["status"] == "cancelled"
    events = await system.events()
    for one in (task_id, *below):
        assert [event["event_type"] for event in events if event["task_id"] == one].count("run_cancelled") == 1
    assert (await system.event(task_id, "batch_cancelled"))["status"] == "cancelled"
    assert not [event for event in events if event["event_type"] == "batch_completed"]


async def test_spec_T03_a_parent_that_is_cancelled_in_its_tool_cancels_what_it_spawned(
    system: System, provider: Provider
) -> None:
    spawned: list[str] = []

    async def spawn_and_stay(execution_ctx: ExecutionContext) -> None:
        """Spawn a task, and stay here."""
        spawned.append(await execution_ctx.spawn_child_task(helper, AgentContext(query="x")))
        await asyncio.Event().wait()

    provider.replies = [call("spawn_and_stay")]
    agent = Agent(name="parent", tools=[spawn_and_stay], model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    await wait_until(lambda: spawned)
    assert await system.orchestrator.cancel_task(task_id) == "processing"
    assert (await system.ended(task_id))["status"] == "cancelled"
    assert (await system.ended(spawned[0]))["status"] == "cancelled"


async def test_spec_T03_what_nobody_waits_for_goes_on_alone(system: System, provider: Provider) -> None:
    spawned: list[str] = []

    async def fire_and_forget(execution_ctx: ExecutionContext) -> str:
        """Spawn a task, and go on."""
        spawned.append(await execution_ctx.spawn_child_task(helper, AgentContext(query="x")))
        return "on its way"

    provider.replies = [call("fire_and_forget"), "Done."]
    agent = Agent(name="parent", tools=[fire_and_forget], model=gpt_41)
    await system.start(agent)
    assert (await system.ended(await system.submit(agent)))["status"] == "completed"
    await system.start(helper)
    assert (await system.ended(spawned[0]))["payload"]["output"] == "found x"


async def test_spec_T03_half_of_the_children_are_executed_by_a_process_that_dies(
    system: System, provider: Provider
) -> None:
    child = Agent(name="child", model=ScriptedModel(lambda messages: say(messages[-1]["content"]), delay=0.2))
    provider.replies = [research(*"abcdefghij"), "Done."]
    parent = Parent(child)
    await system.start(parent.agent)
    doomed = await system.start(child, quick(batch_size=5))
    task_id = await system.submit(parent.agent)
    await wait_until(lambda: doomed.holds)
    await doomed.kill()
    await (await system.mailbox()).reclaim_process(doomed.name)
    await system.start(child)
    assert [end.text for end in await results(system, task_id)] == list("abcdefghij")
    assert (await system.data(task_id))["pickups"] == 2


async def test_spec_T03_children_inline(provider: Provider) -> None:
    provider.replies = [research("cats", "dogs"), "Both sleep."]
    parent = Parent()
    events: list[BaseEvent] = []
    completion = await parent.agent.run_inline(AgentContext(query="q"), events.append)
    assert outputs(completion.context.messages[2]["content"]) == ["found cats", "found dogs"]
    assert completion.output == "Both sleep."
    assert {event.task_id for event in events} >= set(parent.batches[0].task_ids)


async def test_spec_T03_children_inline_that_fail_or_take_too_long(provider: Provider) -> None:
    cancelled = asyncio.Event()

    async def wait() -> None:
        """Wait."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def reply(messages: Any) -> Any:
        if messages[-1]["content"] == "fail":
            raise FatalAgentError("no such thing")
        return call("wait")

    provider.replies = [research("fail", "hang"), "Done."]
    parent = Parent(Agent(name="child", model=ScriptedModel(reply), tools=[wait]), timeout=1)
    completion = await parent.agent.run_inline(AgentContext(query="q"))
    assert [(end.kind, end.text) for end in ends(completion.context.messages[2]["content"])] == [
        ("error", "no such thing"),
        ("error", "the task had not ended within 1 seconds, and was cancelled"),
    ]
    assert cancelled.is_set()


def test_spec_T03_a_senseless_timeout_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"forking_tool\(timeout='x'\): use seconds above 0"):
        forking_tool(timeout="x")  # type: ignore[arg-type]


async def test_spec_T03_a_payload_that_does_not_fit_spawns_nothing(system: System, provider: Provider) -> None:
    class Special(AgentContext):
        field: int

    special = Agent(name="special", context_class=Special, model=gpt_41)

    @forking_tool(timeout=60)
    async def fork(execution_ctx: ExecutionContext) -> Batch:
        """Fork."""
        return await execution_ctx.spawn_child_tasks(special, [Special(query="a", field=1), AgentContext(query="b")])

    provider.replies = [call("fork"), "Done."]
    agent = Agent(name="parent", tools=[fork], model=gpt_41)
    await system.start(agent)
    sent = (await system.ended(await system.submit(agent)))["payload"]["messages"]
    assert "works on Special, which cannot be made of an AgentContext: field: Field required" in sent[2]["content"]
    assert len({event["task_id"] for event in await system.events()}) == 1


async def test_spec_T03_children_are_removed_like_any_task(system: System, provider: Provider) -> None:
    provider.replies = [research("cats"), "Done."]
    parent = Parent()
    short = MaintenanceWorkerConfig(interval=0.05, task_ttl={"completed_ttl": 0.2})  # type: ignore[arg-type]
    await system.start(parent.agent, maintenance=tidy())
    await system.start(helper, maintenance=short)
    task_id = await system.submit(parent.agent)
    assert (await results(system, task_id))[0].text == "found cats"
    child = parent.batches[0].task_ids[0]

    async def gone() -> bool:
        return await system.orchestrator.get_task_data(child) is None

    await wait_until(gone)
    assert texts((await system.data(task_id))["payload"]["messages"])[-1] == "assistant: Done."
