"""Chapter N of PROMISES.md: many tasks as one batch. Real: Valkey. Fake: the language model; and in some tests the
connection, which breaks when the test says so."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from factorial import (
    Agent,
    AgentContext,
    BaseAgent,
    Batch,
    ExecutionContext,
    FatalAgentError,
    TurnCompletion,
    forking_tool,
    gpt_41,
)
from factorial.errors import BatchNotFoundError, ConfigError, ContextError, MailboxUnavailableError
from factorial.mailbox.script import Scripts
from factorial.testing import ScriptedModel, call, say
from tests.harness import System, quick
from tests.spec.provider import Provider
from tests.support import wait_until


def reply(messages: Any) -> Any:
    """What a task says."""
    if messages[-1]["content"] == "fail":
        raise FatalAgentError("no such thing")
    return say(f"found {messages[-1]['content']}")


searcher = Agent(name="searcher", model=ScriptedModel(reply))


class Walker(BaseAgent[AgentContext]):
    """Takes as many turns as its query says, and asks no model."""

    def __init__(self, max_turns: int = 4) -> None:
        super().__init__(name="walker", max_turns=max_turns)

    async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
        return TurnCompletion(is_done=agent_ctx.turn + 1 >= int(agent_ctx.query), context=agent_ctx, output="there")


def payloads(*queries: object) -> list[AgentContext]:
    """A context for each."""
    return [AgentContext(query=str(query)) for query in queries]


async def told(system: System, batch: Batch) -> list[tuple[Any, ...]]:
    """The batch's events: type, progress, tasks that have ended, status."""
    return [
        (one["event_type"], one["progress"], one["completed_tasks"], one["status"])
        for one in await system.events()
        if one.get("batch_id") == batch.id and one["event_type"].startswith("batch_")
    ]


async def over(system: System, batch: Batch) -> str:
    """How the batch has ended, once it has."""

    async def end() -> str | None:
        types = [event_type for event_type, *_ in await told(system, batch)]
        return next((event_type for event_type in types if event_type != "batch_progress"), None)

    return str(await wait_until(end, message=f"the end of batch {batch.id}"))


async def test_spec_N05_many_tasks_are_one_batch(system: System) -> None:
    batch = await system.orchestrator.enqueue_batch(
        agent=searcher, owner_id="owner", payloads=payloads("a", "fail", "c")
    )
    assert len(batch.id) == 32 and len(set(batch.task_ids)) == 3
    metadata = batch.metadata
    assert (metadata.owner_id, metadata.total_tasks, metadata.status, metadata.parent_id) == (
        "owner",
        3,
        "active",
        None,
    )
    await system.start(searcher, quick(batch_size=1))
    assert await over(system, batch) == "batch_completed"
    ends = [await system.data(task_id) for task_id in batch.task_ids]
    assert [(end["status"], end["payload"]["output"]) for end in ends] == [
        ("completed", "found a"), ("failed", None), ("completed", "found c"),
    ]  # fmt: skip
    assert {(end["batch_id"], end["parent_id"], end["metadata"]["batch_id"]) for end in ends} == {
        (batch.id, None, batch.id)
    }
    assert await told(system, batch) == [
        ("batch_progress", 33, 1, "active"), ("batch_progress", 66, 2, "active"),
        ("batch_progress", 100, 3, "completed"), ("batch_completed", 100, 3, "completed"),
    ]  # fmt: skip
    assert await system.orchestrator.get_batch_data(batch.id) == {
        "id": batch.id, "total_tasks": 3, "completed_tasks": 3, "progress": 100.0, "status": "completed",
        "completed": 2, "failed": 1, "cancelled": 0,
    }  # fmt: skip


async def test_spec_N05_thousands_in_one_call(system: System) -> None:
    types = ["batch_progress", "batch_completed"]
    watching = asyncio.create_task(
        system.updates(lambda heard: heard[-1]["event_type"] == "batch_completed", 120, event_types=types, after="$")
    )
    batch = await system.orchestrator.enqueue_batch(searcher, "owner", payloads(*range(3000)))
    assert len(set(batch.task_ids)) == 3000
    await system.start(searcher, quick(batch_size=200))
    await system.start(searcher, quick(batch_size=200))
    events = await watching
    assert [one["progress"] for one in events] == [*range(1, 101), 100]
    assert Counter(one["event_type"] for one in events) == {"batch_progress": 100, "batch_completed": 1}
    data = await system.orchestrator.get_batch_data(batch.id)
    assert data and data["completed"] == 3000
    assert (await system.data(batch.task_ids[2999]))["payload"]["output"] == "found 2999"


@contextmanager
def breaking(monkeypatch: pytest.MonkeyPatch, script: str, at: int, *, before: bool) -> Iterator[list[int]]:
    """The connection is lost with the `at`-th call of the script, before or after the server has carried it out."""
    calls = [0]
    run = Scripts.run

    async def lossy(self: Scripts, name: str, *args: Any) -> Any:
        calls[0] += name == script
        lost = name == script and calls[0] == at
        if lost and before:
            raise MailboxUnavailableError("the connection is lost")
        answer = await run(self, name, *args)
        if lost:
            raise MailboxUnavailableError("the connection is lost")
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(Scripts, "run", lossy)
        yield calls


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("at", [1, 3, 5])
@pytest.mark.parametrize("batch_id", [None, "import-2026-11"])
async def test_spec_N05_a_call_that_is_repeated_after_a_failure_enqueues_nothing_twice(
    system: System, monkeypatch: pytest.MonkeyPatch, before: bool, at: int, batch_id: str | None
) -> None:
    many = payloads(*range(450))
    with breaking(monkeypatch, "enqueue_batch", at, before=before) as calls:
        with pytest.raises(MailboxUnavailableError):
            await system.orchestrator.enqueue_batch(searcher, "owner", many, batch_id=batch_id)
        batch = await system.orchestrator.enqueue_batch(searcher, "owner", many, batch_id=batch_id)
        assert calls[0] == at + 5
    enqueued = [one["task_id"] for one in await system.events() if one["event_type"] == "run_enqueued"]
    assert sorted(enqueued) == sorted(batch.task_ids) and len(set(enqueued)) == 450
    assert batch_id is None or batch.id == batch_id
    await system.start(searcher, quick(batch_size=100))
    assert await over(system, batch) == "batch_completed"
    data = await system.orchestrator.get_batch_data(batch.id)
    assert data and (data["total_tasks"], data["completed"]) == (450, 450)


async def test_spec_N05_two_calls_that_succeed_are_two_batches_but_for_the_same_id(system: System) -> None:
    enqueue = system.orchestrator.enqueue_batch
    first, second = [await enqueue(searcher, "owner", payloads("a", "b")) for _ in range(2)]
    assert first.id != second.id and not set(first.task_ids) & set(second.task_ids)
    mine, again = [await enqueue(searcher, "owner", payloads("a", "b"), batch_id="mine") for _ in range(2)]
    assert mine == again and mine.id == "mine"
    assert len([one for one in await system.events() if one["event_type"] == "run_enqueued"]) == 6
    with pytest.raises(ConfigError, match="there is a batch 'mine' with another owner, agent or number of tasks"):
        await enqueue(searcher, "owner", payloads("a"), batch_id="mine")
    with pytest.raises(ConfigError, match="there is a batch 'mine'"):
        await enqueue(searcher, "somebody", payloads("a", "b"), batch_id="mine")


async def test_spec_N05_what_cannot_be_enqueued_stores_nothing(system: System) -> None:
    class Strict(AgentContext):
        file: str

    strict = BaseAgent[Strict](name="strict", context_class=Strict, model=ScriptedModel([]))
    enqueue: Any = system.orchestrator.enqueue_batch
    with pytest.raises(ContextError, match=r"payloads\[1\]: agent 'strict' works on Strict, .*file: Field required"):
        await enqueue(agent=strict, owner_id="owner", payloads=[Strict(query="a", file="f"), AgentContext(query="b")])
    for wrong in (AgentContext(query="?"), "queries", {"query": "?"}, None):
        with pytest.raises(ConfigError, match=r"enqueue_batch: payloads are .*: give a list of contexts"):
            await enqueue(agent=searcher, owner_id="owner", payloads=wrong)
    with pytest.raises(ConfigError, match="give the agent itself, not its name"):
        await enqueue(agent="searcher", owner_id="owner", payloads=[])
    with pytest.raises(ConfigError, match="cannot name an owner"):
        await enqueue(agent=searcher, owner_id="", payloads=payloads("a"))
    assert await system.events() == []
    empty = await enqueue(agent=searcher, owner_id="owner", payloads=[])
    assert (empty.task_ids, empty.metadata.status) == ([], "completed")


async def test_spec_N05_a_subscriber_that_comes_after_the_call_misses_nothing(system: System) -> None:
    await system.start(searcher)
    batch = await system.orchestrator.enqueue_batch(searcher, "owner", payloads("a", "b"))
    await over(system, batch)
    types = ["batch_progress", "batch_completed", "batch_cancelled"]
    heard = await system.updates(lambda heard: heard[-1]["event_type"] == "batch_completed", event_types=types)
    assert {(one["batch_id"], one["owner_id"], one["agent_name"], one["task_id"]) for one in heard} == {
        (batch.id, "owner", "searcher", None)
    }


# -- N06


async def test_spec_N06_cancelling_a_batch_ends_all_that_has_not_ended(system: System) -> None:
    """One has ended, one is executed, one is parked with a child of its own, and the others are queued."""
    gate = asyncio.Event()
    children: list[str] = []

    async def endless() -> None:
        """Never return."""
        gate.set()
        await asyncio.Event().wait()

    @forking_tool(timeout=600)
    async def fork(execution_ctx: ExecutionContext) -> str:
        """Spawn a child that nobody executes."""
        children.append(await execution_ctx.spawn_child_task(searcher, AgentContext(query="x")))
        return children[0]

    def work(messages: Any) -> Any:
        kind = messages[-1]["content"]
        return {"run": call("endless"), "park": call("fork")}.get(kind) or say("done")

    agent = Agent(name="worker", tools=[endless, fork], model=ScriptedModel(work))
    enqueue = system.orchestrator.enqueue_batch
    batch = await enqueue(agent, "owner", payloads("quick", "park", "run", *["later"] * 297))
    await system.start(agent, quick(batch_size=1))
    await wait_until(gate.is_set)
    await system.reaches(batch.task_ids[1], "pending_child_tasks")
    cancelled = await system.orchestrator.cancel_batch(batch.id)
    assert cancelled == batch and cancelled.metadata.status == "cancelled"
    assert (cancelled.metadata.owner_id, cancelled.metadata.total_tasks) == ("owner", 300)
    assert await over(system, batch) == "batch_cancelled"
    statuses = Counter([(await system.data(task_id))["status"] for task_id in batch.task_ids])
    assert statuses == {"completed": 1, "cancelled": 299}
    assert (await system.ended(children[0]))["status"] == "cancelled"
    assert (await system.orchestrator.cancel_batch(batch.id)).metadata.status == "cancelled"
    assert Counter(event_type for event_type, *_ in await told(system, batch))["batch_cancelled"] == 1
    data = await system.orchestrator.get_batch_data(batch.id)
    assert data and (data["status"], data["completed"], data["cancelled"]) == ("cancelled", 1, 299)
    events = Counter(one["task_id"] for one in await system.events() if one["event_type"] == "run_cancelled")
    assert events == dict.fromkeys([*batch.task_ids[1:], children[0]], 1)


async def test_spec_N06_a_batch_that_is_not_there(system: System) -> None:
    with pytest.raises(BatchNotFoundError, match="there is no batch 'b1'") as unknown:
        await system.orchestrator.cancel_batch("b1")
    assert unknown.value.batch_id == "b1"
    assert await system.orchestrator.get_batch_data("b1") is None


async def test_spec_N06_a_batch_that_has_ended_stays_as_it_is(system: System) -> None:
    await system.start(searcher)
    batch = await system.orchestrator.enqueue_batch(searcher, "owner", payloads("a"))
    await over(system, batch)
    before = await system.events()
    assert (await system.orchestrator.cancel_batch(batch.id)).metadata.status == "completed"
    assert await system.events() == before


@pytest.mark.parametrize("executed", [True, False])
async def test_spec_N06_a_batch_of_which_a_part_was_enqueued(
    system: System, monkeypatch: pytest.MonkeyPatch, executed: bool
) -> None:
    """The client dies in its midst. What is stored is cancelled, and the rest is not stored any more."""
    with breaking(monkeypatch, "enqueue_batch", 2, before=True), pytest.raises(MailboxUnavailableError):
        await system.orchestrator.enqueue_batch(searcher, "owner", payloads(*range(250)), batch_id="half")
    if executed:
        await system.start(searcher, quick(batch_size=100))

        async def ended() -> bool:
            data = await system.orchestrator.get_batch_data("half")
            return data is not None and data["completed"] == 100

        await wait_until(ended)
    cancelled = await system.orchestrator.cancel_batch("half")
    assert cancelled.metadata.status == "cancelled" and await over(system, cancelled) == "batch_cancelled"
    again = await system.orchestrator.enqueue_batch(searcher, "owner", payloads(*range(250)), batch_id="half")
    assert again.metadata.status == "cancelled"
    enqueued = [one for one in await system.events() if one["event_type"] == "run_enqueued"]
    assert len(enqueued) == 100 and [name for name, *_ in await told(system, again)].count("batch_cancelled") == 1


async def test_spec_N06_the_batch_of_a_forking_tool_may_be_cancelled_too(system: System, provider: Provider) -> None:
    batches: list[Batch] = []

    @forking_tool(timeout=60)
    async def fork(execution_ctx: ExecutionContext) -> Batch:
        """Fork."""
        batches.append(await execution_ctx.spawn_child_tasks(searcher, payloads("a", "b")))
        return batches[0]

    provider.replies = [call("fork"), "Then not."]
    agent = Agent(name="parent", tools=[fork], model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    await system.reaches(task_id, "pending_child_tasks")
    assert batches[0].metadata.parent_id == task_id and batches[0].metadata.total_tasks == 2
    cancelled = await system.orchestrator.cancel_batch(batches[0].id)
    assert cancelled == batches[0] and cancelled.metadata.parent_id == task_id
    data = await system.ended(task_id)
    assert data["payload"]["output"] == "Then not."
    assert data["payload"]["messages"][2]["content"].count("the task was cancelled") == 2
    assert await over(system, batches[0]) == "batch_cancelled"


# -- N07


async def test_spec_N07_with_max_turns_progress_counts_turns(system: System) -> None:
    """Four turns at most, of two tasks. The first takes one, and counts as if it had taken all of them in the end."""
    walker = Walker()
    batch = await system.orchestrator.enqueue_batch(walker, "owner", payloads(1, 3))
    assert batch.metadata.max_progress == 8
    await system.start(walker, quick(batch_size=1))
    assert await over(system, batch) == "batch_completed"
    assert await told(system, batch) == [
        ("batch_progress", 50, 1, "active"), ("batch_progress", 62, 1, "active"), ("batch_progress", 75, 1, "active"),
        ("batch_progress", 100, 2, "completed"), ("batch_completed", 100, 2, "completed"),
    ]  # fmt: skip
    for event in await system.events():
        if event["event_type"].startswith("batch_"):
            assert {"batch_id", "owner_id", "progress", "completed_tasks", "total_tasks", "status"} <= event.keys()
            assert (event["total_tasks"], event["owner_id"]) == (2, "owner")


async def test_spec_N07_a_turn_that_waits_or_is_taken_again_counts_once(system: System, provider: Provider) -> None:
    from factorial import deferred_tool

    @deferred_tool(timeout=60)
    def approve() -> None:
        """Approve."""

    failures = iter([True, False])

    def work(messages: Any) -> Any:
        if len(messages) == 3 and next(failures):
            raise RuntimeError("not yet")
        return call("approve") if len(messages) == 1 else say("done")

    agent = Agent(name="clerk", tools=[approve], model=ScriptedModel(work), max_turns=5)
    batch = await system.orchestrator.enqueue_batch(agent, "owner", payloads("x"))
    await system.start(agent)
    awaits = (await system.reaches(batch.task_ids[0], "pending_tool_results"))["awaits"]
    assert (await told(system, batch)) == [("batch_progress", 20, 0, "active")]
    await system.orchestrator.complete_deferred_tool(batch.task_ids[0], awaits[0].removeprefix("tool:"), "yes")
    await over(system, batch)
    assert [progress for _, progress, *_ in await told(system, batch)] == [20, 100, 100]
    assert "task_retried" in await system.types(batch.task_ids[0])


async def test_spec_N07_the_children_of_a_forking_tool_count_turns_too(system: System, provider: Provider) -> None:
    batches: list[Batch] = []
    walker = Walker(max_turns=2)

    @forking_tool(timeout=60)
    async def fork(execution_ctx: ExecutionContext) -> Batch:
        """Fork."""
        batches.append(await execution_ctx.spawn_child_tasks(walker, payloads(2, 2)))
        return batches[0]

    provider.replies = [call("fork"), "Done."]
    agent = Agent(name="parent", tools=[fork], model=gpt_41)
    await system.start(agent)
    await system.start(walker, quick(batch_size=1))
    task_id = await system.submit(agent)
    await system.ended(task_id)
    assert [progress for _, progress, *_ in await told(system, batches[0])] == [25, 50, 75, 100, 100]
    assert (await system.event(task_id, "batch_completed"))["agent_name"] == "parent"


async def test_spec_N07_all_turns_of_a_hundred_tasks_are_a_hundred_events_at_most(system: System) -> None:
    walker = Walker(max_turns=10)
    batch = await system.orchestrator.enqueue_batch(walker, "owner", payloads(*[10] * 60, *[3] * 39, 1))
    await system.start(walker, quick(batch_size=50))
    await over(system, batch)
    progress = [percent for name, percent, *_ in await told(system, batch) if name == "batch_progress"]
    assert progress == sorted(set(progress)) and progress[-1] == 100 and len(progress) <= 100
    data = await system.orchestrator.get_batch_data(batch.id)
    assert data and data["progress"] == 100.0


async def test_spec_N07_a_failed_and_a_cancelled_task_count_as_ended(system: System) -> None:
    walker = Walker(max_turns=3)
    batch = await system.orchestrator.enqueue_batch(walker, "owner", payloads(1, "no number", 1))
    await system.orchestrator.cancel_task(batch.task_ids[2])
    assert await told(system, batch) == [("batch_progress", 33, 1, "active")]
    await system.start(walker, quick(batch_size=1, max_retries=0))
    assert await over(system, batch) == "batch_completed"
    assert [progress for _, progress, *_ in await told(system, batch)] == [33, 66, 100, 100]
