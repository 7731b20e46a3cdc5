"""Chapter E of PROMISES.md, and T05: what is published, with which fields, in which order.

Real: Valkey, the workers' actors, HTTP to the model. Fake: the language model, and (in one test) the death of a
process, which just stops to say anything.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from llmock.pytest_plugin import LLMock

from factorial import (
    Agent,
    AgentContext,
    AgentEvent,
    BaseAgent,
    Batch,
    ExecutionContext,
    ModelSettings,
    Orchestrator,
    TurnCompletion,
    deferred_result,
    forking_tool,
    gpt_41,
    publish_progress,
)
from factorial.errors import ConfigError, InactiveTaskError, InvalidLLMResponseError
from factorial.events import CATALOGUE, MAX_EVENT_DATA
from factorial.mailbox.operations.lease import Cause
from factorial.testing import call, calls, say
from tests.harness import System, quick
from tests.spec.provider import Provider
from tests.support import wait_until

Updates = list[dict[str, Any]]
BASE = {"event_type", "task_id", "owner_id", "timestamp", "agent_name", "metadata", "id"}


def get_weather(city: str, execution_ctx: ExecutionContext) -> str:
    """Get weather for a city"""
    execution_ctx.progress(0.5, "looking")
    return f"The weather in {city} is sunny."


def refuse(city: str) -> str:
    """Refuse to say anything"""
    raise ValueError(f"nobody knows {city}")


@pytest.fixture
def agent() -> Agent:
    return Agent(name="my_agent", instructions="Help.", tools=[get_weather, refuse], model=gpt_41)


def types(updates: Updates) -> list[str]:
    return [one["event_type"] for one in updates]


def ended(*task_ids: str) -> Callable[[Updates], bool]:
    """Enough is heard when each of the tasks has ended."""
    endings = ("run_completed", "run_failed", "run_cancelled")
    return lambda heard: set(task_ids) <= {one["task_id"] for one in heard if one["event_type"] in endings}


def only(updates: Updates, event_type: str) -> dict[str, Any]:
    [event] = [one for one in updates if one["event_type"] == event_type]
    return event


# -- E01: filters


async def test_spec_E01_each_filter_alone_and_all_together(system: System, agent: Agent, llmock: LLMock) -> None:
    for _ in range(2):
        llmock.call_tool("get_weather", {"city": "Oslo"}).reply("Sunny.")
    await system.start(agent)
    first = await system.submit(agent)
    await system.ended(first)
    second = await system.submit(agent)
    await system.ended(second)
    everything = await system.events()

    async def heard(**filters: Any) -> Updates:
        """What passes: the subscription has heard all when it has heard more than there was."""
        found: Updates = []
        subscription = system.orchestrator.subscribe_to_updates("owner", after="0", **filters)
        expected = [one for one in everything if _passes(one, **filters)]
        async with contextlib.aclosing(subscription) as updates, asyncio.timeout(20):
            while len(found) < len(expected):
                found.append(await anext(updates))
        assert found == expected
        return found

    await heard()
    await heard(task_ids=[second])
    await heard(event_types=["run_started", "agent_output"])
    assert set(types(await heard(event_pattern=r"progress_update_tool_action_.*"))) == {
        "progress_update_tool_action_started", "progress_update_tool_action_completed",
    }  # fmt: skip
    [one] = await heard(task_ids=[second], event_types=["agent_output", "task_failed"], event_pattern="agent_.*")
    assert (one["event_type"], one["task_id"], one["data"]) == ("agent_output", second, "Sunny.")


def _passes(
    event: dict[str, Any],
    task_ids: list[str] | None = None,
    event_types: list[str] | None = None,
    event_pattern: str | None = None,
) -> bool:
    return (
        (task_ids is None or event["task_id"] in task_ids)
        and (event_types is None or event["event_type"] in event_types)
        and (event_pattern is None or re.match(event_pattern, event["event_type"]) is not None)
    )


async def test_spec_E01_what_the_filters_leave_out_never_comes(system: System, agent: Agent, llmock: LLMock) -> None:
    """Live, too: the subscriber is there before the tasks are."""
    llmock.reply("Sunny.", times=2)
    watching = asyncio.create_task(
        system.updates(lambda heard: len(heard) == 2, 20, event_types=["run_started", "run_completed"], after="0")
    )
    await system.start(agent)
    task_id = await system.submit(agent)
    assert [(one["event_type"], one["task_id"]) for one in await watching] == [
        ("run_started", task_id), ("run_completed", task_id),
    ]  # fmt: skip


async def test_spec_E01_a_subscription_in_the_same_moment_as_the_task(system: System, agent: Agent) -> None:
    """Whichever of the two comes first: the subscriber has everything, or (when it was later) misses nothing."""
    async with Orchestrator(redis_url=system.redis.url, namespace=system.redis.namespace) as other:
        await other.get_task_data("x")  # it is connected

        async def first_update(owner_id: str) -> dict[str, Any]:
            async with contextlib.aclosing(other.subscribe_to_updates(owner_id)) as updates:
                return await anext(updates)

        for number in range(100):
            owner_id = f"owner-{number}"
            watching = asyncio.create_task(first_update(owner_id))
            await asyncio.sleep(number % 20 / 10_000)  # another moment each time
            await system.submit(agent, owner_id=owner_id)
            assert (await asyncio.wait_for(watching, 20))["event_type"] == "run_enqueued"


# -- E03 to E08: the catalogue


async def test_spec_E03_to_E08_every_type_of_the_catalogue_is_published_with_exactly_its_fields(
    system: System, agent: Agent, llmock: LLMock
) -> None:
    watching = asyncio.create_task(_everything(system))
    await _works_fails_and_streams(system, agent, llmock)
    await _is_steered_cancelled_and_reclaimed(system, agent, llmock)
    await _waits_for_others(system, llmock)
    gap = await _misses_something(system)
    watching.cancel()
    heard = [*(await watching), gap]
    for event in heard:
        _assert_fields(event)
    assert set(types(heard)) == set(CATALOGUE)


async def _works_fails_and_streams(system: System, agent: Agent, llmock: LLMock) -> None:
    """A tool that works and one that does not; a provider that fails, then one that refuses; pieces of an answer; and
    a conversation that is too long."""
    process = await system.start(agent, quick(max_retries=1))
    llmock.call_tool("get_weather", {"city": "Oslo"}).call_tool("refuse", {"city": "Rome"}).reply("Sunny.")
    await system.ended(await system.submit(agent), 30)
    for status in (408, 503):
        llmock.fail(status, times=3).reply("At last.")
        await system.ended(await system.submit(agent), 60)
    llmock.fail(401)
    assert (await system.ended(await system.submit(agent), 30))["status"] == "failed"
    await process.drain()

    async def take_steps(agent_ctx: AgentContext, execution_ctx: ExecutionContext) -> None:
        await execution_ctx.step("add", lambda: 1 + 1)
        with pytest.raises(ZeroDivisionError):
            await execution_ctx.step("divide", lambda: 1 // 0)

    class Choosy(Agent):
        rejected = False

        def validate_completion(self, agent_ctx: AgentContext, response: Any) -> None:
            if not self.rejected:
                self.rejected = True
                raise InvalidLLMResponseError("try again")

    narrow = Choosy(name="narrow", model=gpt_41, stream=True, context_window_limit=1_000, on_run_start=take_steps)
    llmock.reply("One two.").reply("One two three.")
    await system.start(narrow)
    messages = [{"role": ("user", "assistant")[n % 2], "content": "word " * 300} for n in range(10)]
    await system.ended(await system.submit(narrow, AgentContext(query="Well?", messages=messages)), 30)


async def _is_steered_cancelled_and_reclaimed(system: System, agent: Agent, llmock: LLMock) -> None:
    """Steered in time and too late; and the process that had it in hand dies."""
    steered, cancelled = await system.submit(agent), await system.submit(agent)
    await system.orchestrator.steer_task(steered, [{"role": "user", "content": "Be brief."}])
    await system.orchestrator.cancel_task(cancelled)
    with pytest.raises(InactiveTaskError):
        await system.orchestrator.steer_task(cancelled, [{"role": "user", "content": "Be brief."}])
    llmock.delay(30)
    doomed = await system.start(agent)
    await wait_until(lambda: doomed.holds, message="the process holds the task")
    await doomed.kill()
    await (await system.mailbox()).reclaim_process(doomed.name, Cause.CRASHED)
    llmock.reset().reply("Brief.")
    await system.start(agent)
    await system.ended(steered, 30)


async def _waits_for_others(system: System, llmock: LLMock) -> None:
    """A result from outside; two tasks that end, and two that are cancelled with the one that waits for them."""
    helper = Agent(name="helper", model=gpt_41)

    @deferred_result(timeout=60)
    def ask() -> None:
        """Ask the manager"""

    @forking_tool(timeout=60)
    async def delegate(execution_ctx: ExecutionContext) -> Batch:
        """Have two others look"""
        return await execution_ctx.spawn_child_tasks(helper, [AgentContext(query="cats"), AgentContext(query="dogs")])

    agent = Agent(name="waiting", tools=[ask, delegate], model=gpt_41)
    await system.start(agent)

    llmock.call_tool("ask").reply("Yes.")
    asking = await system.submit(agent)
    pending = await system.event(asking, "task_pending_tool_call_results", 30)
    await system.orchestrator.complete_deferred_tool(asking, pending["data"]["tool_call_ids"][0], "Yes.")
    await system.ended(asking, 30)

    llmock.call_tool("delegate")
    in_vain = await system.submit(agent)
    await system.reaches(in_vain, "pending_child_tasks", timeout=30)
    await system.orchestrator.cancel_task(in_vain)
    await system.event(in_vain, "batch_cancelled", 30)

    llmock.call_tool("delegate").reply("Cats.").reply("Dogs.").reply("Both.")
    delegating = await system.submit(agent)
    await system.reaches(delegating, "pending_child_tasks", timeout=30)
    await system.start(helper)
    await system.ended(delegating, 30)


async def _misses_something(system: System) -> dict[str, Any]:
    """A subscriber that was away for too long."""
    [first, *_] = await system.events()
    await system.execute("XTRIM", (await system.mailbox()).keys.events("owner"), "MAXLEN", "=", 3)
    [gap] = await system.updates(lambda heard: len(heard) == 1, after=first["id"], event_types=[])
    return gap


async def _everything(system: System) -> Updates:
    heard: Updates = []
    with contextlib.suppress(asyncio.CancelledError):
        async for update in system.orchestrator.subscribe_to_updates("owner", after="0"):
            heard.append(update)
    return heard


def _assert_fields(event: dict[str, Any]) -> None:
    entry = CATALOGUE[event["event_type"]]
    own = {name.partition(".")[0] for name in entry.carries}
    assert event.keys() == BASE | own, event
    for outer, holder in (("data.", event), ("data.result.", event.get("data"))):
        if inner := {name.removeprefix(outer).partition(".")[0] for name in entry.carries if name.startswith(outer)}:
            assert isinstance(holder, dict) and holder[outer.split(".")[-2]].keys() == inner, event
    if "error" in own:
        assert event["error"] and isinstance(event["error"], str), event
    assert event["metadata"] is None or isinstance(event["metadata"], dict)
    assert event["owner_id"] == "owner"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["timestamp"])
    assert abs(datetime.fromisoformat(event["timestamp"]) - datetime.now(UTC)) < timedelta(minutes=5)
    if event["event_type"] != "subscription_gap":  # which is the subscriber's own, not a task's
        assert event["task_id"] and event["agent_name"] in ("my_agent", "narrow", "waiting", "helper")
    assert json.loads(json.dumps(event)) == event


async def test_spec_E04_the_output_with_its_turn(system: System, agent: Agent, llmock: LLMock) -> None:
    llmock.call_tool("get_weather", {"city": "Oslo"}).reply("Sunny in Oslo.")
    await system.start(agent)
    task_id = await system.submit(agent)
    output = only(await system.updates(ended(task_id)), "agent_output")
    assert (output["turn"], output["data"]) == (1, "Sunny in Oslo.")


async def test_spec_E04_an_output_is_published_whole_and_so_is_none(system: System) -> None:
    class Silent(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            long = "x" * 3 * MAX_EVENT_DATA if agent_ctx.query == "much" else None
            return TurnCompletion(is_done=True, context=agent_ctx, output=long)

    agent = Silent()
    await system.start(agent)
    much, nothing = await system.submit(agent, "much"), await system.submit(agent, "nothing")
    heard = await system.updates(ended(much, nothing))
    outputs = {one["task_id"]: one["data"] for one in heard if one["event_type"] == "agent_output"}
    assert outputs == {much: "x" * 3 * MAX_EVENT_DATA, nothing: None}


async def test_spec_E05_what_progress_events_tell(system: System, agent: Agent, llmock: LLMock) -> None:
    llmock.call_tool("get_weather", {"city": "Oslo"}).call_tool("refuse", {"city": "Rome"}).reply("Sunny.")
    await system.start(agent)
    task_id = await system.submit(agent, "Where?")
    heard = await system.updates(ended(task_id), event_pattern="progress_update_|run_")
    for one in heard:
        if one["event_type"].startswith("progress_update_"):
            assert isinstance(one["data"]["args"], list) and isinstance(one["data"]["kwargs"], dict)
            assert one["data"]["context"].keys() == {"query", "turn", "messages"}
            assert one["data"]["context"]["query"] == "Where?"
            assert one["metadata"] == {"turn": one["turn"], "attempt": 1, "pickups": 1, "process": "p1"}
    tools = [one for one in heard if one["event_type"].startswith("progress_update_tool_action_")]
    begun, done, begun_again, failed = tools
    assert begun["data"]["args"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    assert done["data"]["result"]["output_data"] == "The weather in Oslo is sunny."
    assert begun_again["data"]["args"][0]["function"]["name"] == "refuse"
    assert failed["event_type"] == "progress_update_tool_action_failed"
    assert "nobody knows Rome" in failed["error"] and "result" not in failed["data"]
    model_call = [one for one in heard if one["event_type"] == "progress_update_completion_completed"][-1]
    assert model_call["data"]["result"]["content"] == "Sunny."
    assert [one["turn"] for one in heard if one["event_type"] == "progress_update_run_turn_started"] == [0, 1, 2]


async def test_spec_E05_an_event_does_not_grow_with_the_conversation(system: System, llmock: LLMock) -> None:
    """A megabyte of messages, and a tool that hands megabytes around."""

    def read(text: str) -> list[dict[str, str]]:
        """Read it all"""
        return [{"line": text}] * 50

    long = "word " * 20_000
    agent = Agent(name="reader", tools=[read], model=gpt_41)
    llmock.call_tool("read", {"text": long}).reply("Done.")
    await system.start(agent)
    messages = [{"role": ("user", "assistant")[n % 2], "content": long} for n in range(10)]
    task_id = await system.submit(agent, AgentContext(query=long, messages=messages))
    await system.ended(task_id, 30)
    events = await system.events(task_id)
    sizes = {one["event_type"]: len(json.dumps(one)) for one in events}
    assert max(sizes.values()) < 100_000
    assert {name for name, size in sizes.items() if size > 1_500} == {
        "progress_update_tool_action_started", "progress_update_tool_action_completed",
    }  # fmt: skip


async def test_spec_E06_E07_a_run_that_fails_and_is_tried_again(system: System, agent: Agent, llmock: LLMock) -> None:
    llmock.outage(status=503)
    await system.start(agent, quick(max_retries=1, provider_patience=0.0))
    task_id = await system.submit(agent)
    heard = await system.updates(ended(task_id), 60, event_pattern="run_[^t]|task_")
    assert types([one for one in heard if not one["event_type"].startswith("run_turn")]) == [
        "run_enqueued", "run_started", "task_failed", "task_retried", "task_failed", "run_failed",
    ]  # fmt: skip
    failed = only(heard, "run_failed")
    assert failed["error"].startswith(f"Agent my_agent failed to complete task {task_id} due to max retries (1)")
    for one in heard:
        if one["event_type"] == "task_failed":
            assert "503" in one["error"]
    tries = [one["metadata"] for one in heard if one["event_type"] == "task_failed"]
    assert [(one["attempt"], one["pickups"]) for one in tries] == [(1, 1), (2, 2)]


async def test_spec_E06_an_error_that_is_not_tried_again_speaks_of_no_retries(
    system: System, agent: Agent, llmock: LLMock
) -> None:
    llmock.fail(401, message="Incorrect API key")
    await system.start(agent)
    task_id = await system.submit(agent)
    failed = only(await system.updates(ended(task_id)), "run_failed")
    assert failed["error"].startswith(f"Agent my_agent failed to complete task {task_id}: ")
    assert "Incorrect API key" in failed["error"] and "max retries" not in failed["error"]


async def test_spec_E06_cancelled_once(system: System, agent: Agent) -> None:
    task_id = await system.submit(agent)
    await system.orchestrator.cancel_task(task_id)
    await system.orchestrator.cancel_task(task_id)
    assert types(await system.updates(ended(task_id))) == ["run_enqueued", "run_cancelled"]


async def test_spec_E08_steering_applied_and_refused(system: System, agent: Agent, llmock: LLMock) -> None:
    llmock.reply("Brief.")
    task_id = await system.submit(agent)
    await system.orchestrator.steer_task(task_id, [{"role": "user", "content": "Be brief."}])
    with pytest.raises(ConfigError, match="Invalid steering message format"):
        await system.orchestrator.steer_task(task_id, [{"content": "Who says this?"}])
    await system.start(agent)
    heard = await system.updates(ended(task_id))
    assert only(heard, "run_steering_applied")["data"] == {"messages": 1}
    assert only(heard, "run_steering_failed")["error"].startswith("Invalid steering message format")
    assert [one["content"] for one in llmock.last_request.body["messages"]] == ["Help.", "question", "Be brief."]


# -- E09, E10: events of one's own


@dataclass
class CustomAnalysisEvent(AgentEvent):
    """As the document has it: required fields after those with defaults."""

    analysis_type: str
    confidence_score: float
    tags: list[str]


async def test_spec_E09_E10_events_of_ones_own_in_their_place(system: System, llmock: LLMock) -> None:
    class Analyst(BaseAgent[AgentContext]):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            execution_ctx = self.get_execution_context()
            base: Any = {"task_id": execution_ctx.task_id, "owner_id": execution_ctx.owner_id, "agent_name": self.name}
            await execution_ctx.events.publish_event(AgentEvent(event_type="begun", data={"n": 1}, **base))
            done = await super().run_turn(agent_ctx)
            await execution_ctx.events.publish_event(
                CustomAnalysisEvent(
                    event_type="sentiment_analysis_completed",
                    analysis_type="sentiment",
                    confidence_score=0.95,
                    tags=["a", "b"],
                    **base,
                )
            )
            await self.count("words", by=2)
            with contextlib.suppress(ValueError):
                await self.break_down()
            return done

        @publish_progress
        async def count(self, what: str, by: int) -> str:
            return f"{what} by {by}"

        @publish_progress(func_name="breaking")
        async def break_down(self) -> None:
            raise ValueError("broken")

    llmock.reply("Fine.")
    agent = Analyst(name="analyst", model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    heard = await system.updates(ended(task_id))
    assert types(heard) == [
        "run_enqueued",
        "run_started",
        "progress_update_run_turn_started",
        "begun",
        "progress_update_completion_started",
        "progress_update_completion_completed",
        "sentiment_analysis_completed",
        "progress_update_count_started",
        "progress_update_count_completed",
        "progress_update_breaking_started",
        "progress_update_breaking_failed",
        "progress_update_run_turn_completed",
        "agent_output",
        "run_completed",
    ]
    assert only(heard, "begun").keys() == BASE | {"data"}
    custom = only(heard, "sentiment_analysis_completed")
    assert custom.keys() == BASE | {"analysis_type", "confidence_score", "tags"}
    assert (custom["analysis_type"], custom["confidence_score"], custom["tags"]) == ("sentiment", 0.95, ["a", "b"])
    counted = only(heard, "progress_update_count_completed")["data"]
    assert (counted["args"], counted["kwargs"], counted["result"]) == (["words"], {"by": 2}, "words by 2")
    assert only(heard, "progress_update_breaking_failed")["error"] == "ValueError: broken"


# -- E11: order


async def test_spec_E11_parallel_tools_and_several_tasks_at_once(system: System, provider: Provider) -> None:
    """Each task in its own order: a tool's end after its beginning, within its turn, whatever the others do."""

    async def wait(milliseconds: int) -> str:
        """Wait so long"""
        await asyncio.sleep(milliseconds / 1000)
        return f"waited {milliseconds}"

    tools = calls(*(call("wait", milliseconds=milliseconds) for milliseconds in (30, 0, 15, 5)))
    provider.replies = [tools, tools, say("done")]
    agent = Agent(name="waiting", tools=[wait], model=gpt_41, model_settings=ModelSettings(parallel_tool_calls=True))
    watching = asyncio.create_task(
        system.updates(lambda heard: types(heard).count("run_completed") == 12, 60, after="0")
    )
    for _ in range(2):
        await system.start(agent, quick(workers=2))
    task_ids = [await system.submit(agent) for _ in range(12)]
    heard = await watching
    ids = [tuple(map(int, one["id"].split("-"))) for one in heard]
    assert ids == sorted(set(ids))
    for task_id in task_ids:
        _assert_story([one for one in heard if one["task_id"] == task_id])


def _assert_story(events: Updates) -> None:
    story = " ".join(types(events)).replace("progress_update_", "")
    asked = "run_turn_started completion_started completion_completed"
    tool_turn = rf"{asked} (tool_action_(started|completed) ){{8}}run_turn_completed"
    assert re.fullmatch(
        rf"run_enqueued run_started ({tool_turn} ){{2}}{asked} run_turn_completed agent_output run_completed", story
    ), story
    for turn in (0, 1):
        begun: list[str] = []
        done: list[str] = []
        for event in events:
            if event.get("turn") == turn and "tool_action" in event["event_type"]:
                call_id = event["data"]["args"][0]["id"]
                (begun if event["event_type"].endswith("started") else done).append(call_id)
                assert set(done) <= set(begun)
        assert len(set(begun)) == len(set(done)) == 4
    assert [one["timestamp"] for one in events] == sorted(one["timestamp"] for one in events)


# -- T05: chunks


async def test_spec_T05_pieces_of_an_answer_come_between_the_beginning_and_the_end_of_the_call(
    system: System, llmock: LLMock
) -> None:
    agent = Agent(name="streaming", model=gpt_41, stream=True)
    llmock.reply("Sunny, and rather warm for a day in November.").pace(20)
    watching = asyncio.create_task(system.updates(lambda heard: "run_completed" in types(heard), 30, after="0"))
    channel = system.orchestrator.get_updates_channel("owner")

    async def somebody_listens() -> bool:
        return bool((await system.execute("PUBSUB", "NUMSUB", channel))[1])

    await wait_until(somebody_listens)
    await system.start(agent)
    task_id = await system.submit(agent)
    heard = types(await watching)
    chunks = [one for one in await watching if one["event_type"] == "progress_update_completion_chunk"]
    assert len(chunks) > 2 and all(one["id"] is None for one in chunks)
    said = "".join(choice["delta"].get("content") or "" for one in chunks for choice in one["data"]["choices"])
    assert said == "Sunny, and rather warm for a day in November."
    first = heard.index("progress_update_completion_chunk")
    assert heard[first - 1] == "progress_update_completion_started"
    assert heard[first + len(chunks)] == "progress_update_completion_completed"
    assert "progress_update_completion_chunk" not in await system.types(task_id, progress=True)
