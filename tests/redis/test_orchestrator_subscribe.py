"""What subscribers hear: everything, in order, once, whenever they come and however slow they are.

Real: actors, mailbox, Valkey. Fake: the lifeline, and the model, which is scripted.
"""

import asyncio
import contextlib
import json
import re
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from factorial import Agent, AgentContext, AgentEvent, BaseAgent, ExecutionContext, Orchestrator, publish_progress
from factorial.config import EventsConfig
from factorial.errors import ConfigError, MailboxUnavailableError
from factorial.events import encode_event
from factorial.testing import ScriptedModel, call, say
from tests.harness import System, quick
from tests.support import wait_until
from tests.valkey import ValkeyServer

Updates = list[dict[str, Any]]


def ends(*task_ids: str) -> Callable[[Updates], bool]:
    """Enough is heard when each of the tasks has ended."""

    def enough(heard: Updates) -> bool:
        over = {one["task_id"] for one in heard if one["event_type"] in ("run_completed", "run_failed")}
        return over >= set(task_ids)

    return enough


def several(count: int) -> Callable[[Updates], bool]:
    return lambda heard: len(heard) >= count


def types(updates: Updates) -> list[str]:
    return [one["event_type"] for one in updates]


async def emit(system: System, count: int, owner_id: str = "owner", first: int = 0) -> None:
    """Publish numbered events as a run would."""
    scripts = (await system.mailbox()).scripts
    for number in range(first, first + count):
        event = AgentEvent(event_type="numbered", task_id="t", owner_id=owner_id, data=number)
        await scripts.run("publish", owner_id, uuid.uuid4().hex, encode_event(event))


def numbers(updates: Updates) -> list[int]:
    return [one["data"] for one in updates if one["event_type"] == "numbered"]


@pytest.fixture
def agent() -> Agent:
    """Two turns, one tool."""

    def tool() -> str:
        """Work."""
        return "result"

    return Agent(name="subscribed", tools=[tool], model=ScriptedModel([call("tool"), say("done")]))


# -- who comes late


async def test_a_subscriber_that_comes_after_the_run_is_over_sees_it_all(system: System, agent: Agent) -> None:
    await system.start(agent)
    task_id = await system.submit(agent)
    await system.ended(task_id)
    heard = await system.updates(ends(task_id))
    assert types(heard)[0] == "run_enqueued" and types(heard)[-1] == "run_completed"
    [output] = [one for one in heard if one["event_type"] == "agent_output"]
    assert output["data"] == "done"


async def test_a_subscriber_that_comes_in_the_middle_sees_it_all_and_nothing_twice(
    system: System, agent: Agent
) -> None:
    await system.start(agent)
    task_id = await system.submit(agent)
    await system.event(task_id, "progress_update_tool_action_completed")
    heard = await system.updates(ends(task_id))
    assert heard == await system.events(task_id)


async def test_several_tasks_enqueued_before_the_subscription(system: System, agent: Agent) -> None:
    task_ids = [await system.submit(agent) for _ in range(3)]
    await system.start(agent)
    for task_id in task_ids:
        await system.ended(task_id)
    heard = await system.updates(ends(*task_ids))
    assert types(heard).count("agent_output") == 3
    assert heard == await system.events()


async def test_equal_subscriptions_see_the_same(system: System, agent: Agent) -> None:
    """Also those of the orchestrator that has enqueued two tasks, between which the owner was without work."""
    await system.start(agent)
    first = await system.submit(agent)
    await system.ended(first)
    second = await system.submit(agent)
    await system.ended(second)
    heard = [await system.updates(ends(second)) for _ in range(2)]
    assert heard[0] == heard[1] == await system.events(second)
    by_task = [await system.updates(ends(first, second), task_ids=[first, second]) for _ in range(2)]
    assert by_task[0] == by_task[1] == await system.events()


async def test_another_orchestrator_subscribes(system: System, agent: Agent, redis_url: str) -> None:
    """It has enqueued nothing itself: it hears the owner's present or latest activity."""
    await system.start(agent)
    await system.ended(await system.submit(agent))
    task_id = await system.submit(agent)
    await system.ended(task_id)
    async with (
        asyncio.timeout(5),
        Orchestrator(redis_url=redis_url, namespace=system.redis.namespace) as other,
        contextlib.aclosing(other.subscribe_to_updates("owner")) as updates,
    ):
        first = await anext(updates)
    assert (first["event_type"], first["task_id"]) == ("run_enqueued", task_id)


async def test_a_second_subscription_does_not_begin_with_what_the_first_has_heard(system: System, agent: Agent) -> None:
    """It begins with the owner's latest activity, which is the second task."""
    await system.start(agent)
    first = await system.submit(agent)
    await system.updates(ends(first))
    second = await system.submit(agent)
    heard = await system.updates(ends(second))
    assert {one["task_id"] for one in heard} == {second}


async def test_a_subscriber_by_task_id_begins_with_that_task(system: System, agent: Agent) -> None:
    await system.start(agent)
    first, second = await system.submit(agent), await system.submit(agent)
    await system.ended(first)
    await system.ended(second)
    await system.submit(agent)
    heard = await system.updates(ends(first), task_ids=[first])
    assert heard == await system.events(first)


async def test_a_subscriber_before_anything_has_happened(system: System, agent: Agent) -> None:
    waiting = asyncio.create_task(system.updates(lambda heard: "run_completed" in types(heard)))
    await asyncio.sleep(0.05)
    await system.start(agent)
    task_id = await system.submit(agent)
    assert await waiting == await system.events(task_id)


# -- filters


async def test_filters_alone_and_combined(system: System, agent: Agent) -> None:
    await system.start(agent)
    first, second = await system.submit(agent), await system.submit(agent)
    await system.ended(first)
    await system.ended(second)
    stored = await system.events()

    async def heard(**filters: Any) -> Updates:
        found: Updates = []

        def keep(so_far: Updates) -> bool:
            found.append(so_far[-1])
            return False

        with contextlib.suppress(TimeoutError):
            await system.updates(keep, timeout=0.15, after="0", **filters)
        return found

    assert await heard() == stored
    assert await heard(task_ids=[first]) == [one for one in stored if one["task_id"] == first]
    assert await heard(task_ids={first, second}) == stored
    assert types(await heard(event_types=["agent_output"])) == ["agent_output"] * 2
    assert set(types(await heard(event_pattern="run_.*"))) == {"run_enqueued", "run_started", "run_completed"}
    assert set(types(await heard(event_pattern=r"progress_update_tool_action_\w+$"))) == {
        "progress_update_tool_action_started", "progress_update_tool_action_completed",
    }  # fmt: skip
    both = await heard(event_types=["agent_output", "run_started"], event_pattern="run_", task_ids=[second])
    assert [(one["event_type"], one["task_id"]) for one in both] == [("run_started", second)]
    assert await heard(task_ids=[]) == []
    assert await heard(event_types=["agent_output"], event_pattern="run_") == []


@pytest.mark.parametrize(
    ("filters", "complaint"),
    [
        ({"event_pattern": "("}, "is not a regular expression"),
        ({"event_types": "agent_output"}, "give a list of strings"),
        ({"task_ids": "t1"}, "give a list of strings"),
        ({"after": "yesterday"}, "is not an event id"),
        ({"owner_id": ""}, "cannot name an owner"),
    ],
)
async def test_filters_that_cannot_be_meant_are_refused(
    system: System, filters: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        await system.updates(several(1), **filters)


async def test_an_unknown_event_type_is_warned_of_once(system: System, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        async with contextlib.aclosing(
            system.orchestrator.subscribe_to_updates("owner", event_types=["run_complete", "run_failed"], after="$")
        ) as updates:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(anext(updates), 0.1)
    [warning] = [record for record in caplog.records if "event_types" in record.message]
    assert warning.levelname == "WARNING" and "'run_complete'" in warning.message


async def test_owners_do_not_hear_each_other(system: System, agent: Agent) -> None:
    await system.start(agent)
    mine = await system.submit(agent, owner_id="me")
    theirs = await system.submit(agent, owner_id="them")
    heard = await system.updates(ends(mine), owner_id="me")
    assert {one["task_id"] for one in heard} == {mine}
    assert {one["owner_id"] for one in await system.updates(ends(theirs), owner_id="them")} == {"them"}


# -- resuming


async def test_resume_behind_an_event(system: System) -> None:
    await emit(system, 10)
    heard = await system.updates(several(4), after="0")
    await emit(system, 5, first=10)
    rest = await system.updates(several(11), after=heard[-1]["id"])
    assert numbers(heard) + numbers(rest) == list(range(15))


async def test_only_what_is_new(system: System) -> None:
    await emit(system, 3)
    waiting = asyncio.create_task(system.updates(several(2), after="$"))
    channel = system.orchestrator.get_updates_channel("owner")
    await wait_until(lambda: _has_subscriber(system, channel))
    await emit(system, 2, first=3)
    assert numbers(await waiting) == [3, 4]


async def _has_subscriber(system: System, channel: str) -> bool:
    return bool((await system.execute("PUBSUB", "NUMSUB", channel))[1])


async def test_a_gap_is_told_of(system: System) -> None:
    """Events that were to come have been trimmed."""
    await emit(system, 10)
    [first] = await system.updates(several(1), after="0")
    stream = (await system.mailbox()).keys.events("owner")
    await system.execute("XTRIM", stream, "MAXLEN", "=", 3)
    heard = await system.updates(several(4), after=first["id"])
    assert types(heard) == ["subscription_gap", "numbered", "numbered", "numbered"]
    assert numbers(heard) == [7, 8, 9]
    assert heard[0]["data"]["after"] == first["id"]
    assert "subscription_gap" not in types(await system.updates(several(2), after=heard[1]["id"]))
    assert numbers(await system.updates(several(3), after="0")) == [7, 8, 9]


async def test_a_gap_reaches_a_subscriber_whatever_it_filters(system: System) -> None:
    await emit(system, 10)
    [first] = await system.updates(several(1), after="0")
    await system.execute("XTRIM", (await system.mailbox()).keys.events("owner"), "MAXLEN", "=", 3)
    heard = await system.updates(several(1), after=first["id"], event_types=["nothing"])
    assert types(heard) == ["subscription_gap"]


async def test_the_stream_of_an_owner_is_bounded(system: System, redis_url: str) -> None:
    from factorial.mailbox import Namespace

    mailbox = await Namespace.open(system.redis, EventsConfig(max_per_owner=100))
    event = encode_event(AgentEvent(event_type="numbered", owner_id="owner", data=0))
    for _ in range(10):
        await asyncio.gather(*(mailbox.scripts.run("publish", "owner", uuid.uuid4().hex, event) for _ in range(100)))
    assert 100 <= await system.execute("XLEN", mailbox.keys.events("owner")) <= 300  # trimmed by whole nodes
    assert 0 < await system.execute("PTTL", mailbox.keys.events("owner")) <= 86_400_000
    await mailbox.close()


# -- slow readers, several of them, lost connections


async def test_a_slow_reader_misses_nothing_and_holds_nobody_up(system: System) -> None:
    """More news than is kept for one subscriber: it reads the rest from the stream."""
    await emit(system, 1)
    heard: Updates = []
    async with contextlib.aclosing(system.orchestrator.subscribe_to_updates("owner", after="0")) as updates:
        heard.append(await anext(updates))
        scripts = (await system.mailbox()).scripts
        for start in range(1, 3001, 500):
            events = [
                encode_event(AgentEvent(event_type="numbered", task_id="t", owner_id="owner", data=number))
                for number in range(start, start + 500)
            ]
            await asyncio.gather(*(scripts.run("publish", "owner", uuid.uuid4().hex, event) for event in events))
        async with asyncio.timeout(10):
            async for update in updates:
                heard.append(update)
                if len(heard) == 3001:
                    break
    assert numbers(heard) == list(range(3001))


async def test_two_subscribers_hear_the_same_and_the_second_goes_on_when_the_first_leaves(system: System) -> None:
    await emit(system, 1)
    async with contextlib.aclosing(system.orchestrator.subscribe_to_updates("owner", after="0")) as second:
        await anext(second)
        first = await system.updates(several(1), after="0")
        await emit(system, 3, first=1)
        async with asyncio.timeout(5):
            rest = [await anext(second) for _ in range(3)]
    assert numbers([*first, *rest]) == [0, 1, 2, 3]
    channel = system.orchestrator.get_updates_channel("owner")
    await wait_until(lambda: _has_none(system, channel), message="nobody is subscribed any more")


async def _has_none(system: System, channel: str) -> bool:
    return not await _has_subscriber(system, channel)


async def test_the_events_of_a_task_are_in_order_and_none_is_lost_when_the_connection_is(
    system: System,
) -> None:
    """The pub/sub connection is killed again and again while the events come."""
    waiting = asyncio.create_task(system.updates(several(300), after="0", timeout=20))
    channel = system.orchestrator.get_updates_channel("owner")
    for number in range(6):
        await wait_until(lambda: _has_subscriber(system, channel))
        await emit(system, 25, first=50 * number)
        await system.execute("CLIENT", "KILL", "TYPE", "PUBSUB")
        await emit(system, 25, first=50 * number + 25)
    assert numbers(await waiting) == list(range(300))


async def test_the_events_of_each_task_arrive_in_the_order_in_which_they_happened(system: System, agent: Agent) -> None:
    await system.start(agent, quick(workers=2))
    task_ids = [await system.submit(agent) for _ in range(20)]
    heard = await system.updates(ends(*task_ids))
    turn = ["progress_update_run_turn_started", "progress_update_completion_started"]
    turn.append("progress_update_completion_completed")
    tool = ["progress_update_tool_action_started", "progress_update_tool_action_completed"]
    over = ["progress_update_run_turn_completed"]
    expected = ["run_enqueued", "run_started", *turn, *tool, *over, *turn, *over, "agent_output", "run_completed"]
    for task_id in task_ids:
        assert types([one for one in heard if one["task_id"] == task_id]) == expected
    ids = [tuple(map(int, one["id"].split("-"))) for one in heard]
    assert ids == sorted(ids)


# -- the end


async def until_it_ends(updates: AsyncGenerator[dict[str, Any], None]) -> int:
    """How many updates came before the iteration ended."""
    return len([one async for one in updates])


@pytest.mark.parametrize("after", ["0", None])
async def test_close_ends_subscriptions_whatever_they_are_doing(system: System, after: str | None) -> None:
    """Subscriptions that begin so many steps of the event loop before the close: some still connect."""
    await emit(system, 600)
    for steps in range(1, 40):
        orchestrator = Orchestrator(redis_url=system.redis.url, namespace=system.redis.namespace)
        if steps % 2:
            await orchestrator.get_task_data("nothing")  # is connected already
        subscriptions = [
            asyncio.create_task(until_it_ends(orchestrator.subscribe_to_updates("owner", after=after)))
            for _ in range(3)
        ]
        for _ in range(steps):
            await asyncio.sleep(0)
        await orchestrator.close()
        async with asyncio.timeout(10):
            assert max(await asyncio.gather(*subscriptions)) <= 600


async def test_close_ends_subscriptions_that_wait_for_the_next_event(system: System) -> None:
    async with Orchestrator(redis_url=system.redis.url, namespace=system.redis.namespace) as orchestrator:
        waiting = [
            asyncio.create_task(until_it_ends(orchestrator.subscribe_to_updates(owner, after="0")))
            for owner in ("owner", "owner", "other")
        ]
        paused = orchestrator.subscribe_to_updates("owner", after="0")
        for owner in ("owner", "other"):
            channel = orchestrator.get_updates_channel(owner)
            await wait_until(lambda channel=channel: _has_subscriber(system, channel))
        await emit(system, 2)
        await anext(paused)
    async with asyncio.timeout(10):
        assert await asyncio.gather(*waiting) == [2, 2, 0]
        assert await until_it_ends(paused) <= 1
    # An orchestrator that is used again connects again.
    try:
        async with (
            asyncio.timeout(10),
            contextlib.aclosing(orchestrator.subscribe_to_updates("owner", after="0")) as again,
        ):
            assert numbers([await anext(again), await anext(again)]) == [0, 1]
    finally:
        await orchestrator.close()


async def test_a_subscription_to_a_server_that_is_gone_does_not_end_as_if_it_was_closed(
    own_valkey: ValkeyServer,
) -> None:
    own_valkey.start()
    async with Orchestrator(redis_url=own_valkey.url) as orchestrator:
        await orchestrator.get_task_data("nothing")
        own_valkey.stop()
        with pytest.raises(MailboxUnavailableError):
            await anext(orchestrator.subscribe_to_updates("owner"))


# -- the manual way, and the fields


async def test_plain_json_arrives_on_the_channel(system: System, agent: Agent, node_url: str) -> None:
    """With redis-py, as the document's snippet does it."""
    client = Redis.from_url(node_url)
    pubsub = client.pubsub()
    await pubsub.subscribe(system.orchestrator.get_updates_channel(owner_id="owner"))
    await system.start(agent)
    task_id = await system.submit(agent)
    heard = []
    async with asyncio.timeout(5):
        async for message in pubsub.listen():
            if message["type"] == "message":
                heard.append(json.loads(message["data"]))
                if heard[-1]["event_type"] == "run_completed":
                    break
    await pubsub.aclose()  # type: ignore[no-untyped-call]
    await client.aclose()
    assert heard == await system.events(task_id)


async def test_every_event_has_the_base_fields(system: System, agent: Agent) -> None:
    await system.start(agent)
    task_id = await system.submit(agent)
    heard = await system.updates(ends(task_id))
    for one in heard:
        assert {"id", "event_type", "task_id", "owner_id", "timestamp", "agent_name", "metadata"} <= one.keys()
        assert (one["task_id"], one["owner_id"], one["agent_name"]) == (task_id, "owner", "subscribed")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one["timestamp"])
        assert abs(datetime.fromisoformat(one["timestamp"]) - datetime.now(UTC)) < timedelta(seconds=30)
    assert heard[1]["metadata"] == {"process": "p1"}
    assert heard[2]["metadata"] == {"turn": 0, "attempt": 1, "pickups": 1, "process": "p1"}


async def test_the_output_has_its_turn(system: System, agent: Agent) -> None:
    await system.start(agent)
    output = await system.event(await system.submit(agent), "agent_output")
    assert (output["turn"], output["data"]) == (1, "done")


async def test_progress_events_carry_args_kwargs_and_context(system: System, agent: Agent) -> None:
    await system.start(agent)
    task_id = await system.submit(agent, "what is it?")
    await system.ended(task_id)
    progress = [one for one in await system.events(task_id) if one["event_type"].startswith("progress_update_")]
    for one in progress:
        assert {"args", "kwargs", "context"} <= one["data"].keys()
        assert one["data"]["context"]["query"] == "what is it?"
    [tool] = [one for one in progress if one["event_type"] == "progress_update_tool_action_started"]
    assert tool["data"]["args"][0]["function"] == {"name": "tool", "arguments": "{}"}
    [told] = [one for one in progress if one["event_type"] == "progress_update_tool_action_completed"]
    assert told["data"]["result"]["output_data"] == "result"


async def test_a_failing_tool_and_a_failing_turn_are_told_of(system: System) -> None:
    async def tool() -> str:
        """Fail."""
        raise ValueError("no")

    class Failing(Agent):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            if len(messages) > 1:
                raise RuntimeError("no second call")
            return await super().completion(agent_ctx, messages)

    agent = Failing(name="failing", tools=[tool], model=ScriptedModel([call("tool")]))
    await system.start(agent, quick(max_retries=0))
    task_id = await system.submit(agent)
    await system.ended(task_id)
    failed = {
        one["event_type"]: one.get("error")
        for one in await system.events(task_id)
        if one["event_type"].endswith("_failed") and one["event_type"].startswith("progress")
    }
    assert failed["progress_update_completion_failed"] == "RuntimeError: no second call"
    assert failed["progress_update_run_turn_failed"] == "RuntimeError: no second call"


@dataclass(kw_only=True)
class Milestone(AgentEvent):
    """An event with a required field of its own."""

    name: str
    percent: float = 0.0


async def test_custom_events(system: System) -> None:
    class Telling(BaseAgent[AgentContext]):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            execution_ctx = self.get_execution_context()
            base: Any = {"task_id": execution_ctx.task_id, "owner_id": execution_ctx.owner_id, "agent_name": self.name}
            await execution_ctx.events.publish_event(AgentEvent(event_type="custom", data={"k": {1}}, **base))
            await execution_ctx.events.publish_event(
                Milestone(event_type="milestone", name="half", percent=50.0, **base)
            )
            await self.process(5)
            return await super().completion(agent_ctx, messages)

        @publish_progress(func_name="data_processing")
        async def process(self, amount: int) -> str:
            return f"{amount} done"

    agent = Telling(name="telling", model=ScriptedModel(["done"]))
    await system.start(agent)
    task_id = await system.submit(agent)
    milestone = await system.event(task_id, "milestone")
    assert (milestone["name"], milestone["percent"]) == ("half", 50.0)
    assert (await system.event(task_id, "custom"))["data"] == {"k": [1]}
    processed = await system.event(task_id, "progress_update_data_processing_completed")
    assert (processed["data"]["args"], processed["data"]["result"]) == ([5], "5 done")
    told = await system.types(task_id, progress=True)
    assert told.index("custom") < told.index("milestone") < told.index("progress_update_data_processing_started")


async def test_chunks_of_a_streamed_completion_are_live_and_not_kept(system: System) -> None:
    agent = Agent(name="streaming", stream=True, model=ScriptedModel([say("one two three")]))
    waiting = asyncio.create_task(
        system.updates(lambda heard: "run_completed" in types(heard), event_pattern="run_|progress_update_completion")
    )
    channel = system.orchestrator.get_updates_channel("owner")
    await wait_until(lambda: _has_subscriber(system, channel))
    await system.start(agent)
    task_id = await system.submit(agent)
    heard = await waiting
    chunks = [one for one in heard if one["event_type"] == "progress_update_completion_chunk"]
    said = "".join(one["data"]["choices"][0]["delta"].get("content") or "" for one in chunks)
    assert said == "one two three"
    assert "progress_update_completion_chunk" not in await system.types(task_id, progress=True)
    order = types(heard)
    assert order.index("progress_update_completion_started") < order.index("progress_update_completion_chunk")


async def test_the_execution_context_within_a_turn(system: System) -> None:
    seen: list[ExecutionContext] = []

    def tool(execution_ctx: ExecutionContext) -> str:
        """Look."""
        assert ExecutionContext.current().task_id == execution_ctx.task_id  # also in the tool's own thread
        seen.append(execution_ctx)
        return "x"

    agent = Agent(name="looking", tools=[tool], model=ScriptedModel([call("tool"), call("tool"), say("done")]))
    await system.start(agent)
    task_id = await system.submit(agent)
    await system.ended(task_id)
    assert [(one.task_id, one.owner_id, one.retries, one.pickups, one.iterations) for one in seen] == [
        (task_id, "owner", 0, 1, 1), (task_id, "owner", 0, 1, 2),
    ]  # fmt: skip
