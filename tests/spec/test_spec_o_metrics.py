"""Chapter O of PROMISES.md: metrics (O12), and the settings of the dashboard (O11).

Real: Valkey, HTTP, the openai client, the runner of a process; where a test says so, the supervisor and its processes.
Fake: the language model, and the lifeline between runner and supervisor.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from llmock.pytest_plugin import LLMock

from examples.weather import weather_agent
from factorial import (
    Agent,
    AgentContext,
    BaseAgent,
    FatalAgentError,
    MetricsTimelineConfig,
    ObservabilityConfig,
    Orchestrator,
    RetryableError,
    TurnCompletion,
    deferred_result,
    gpt_41,
)
from factorial.mailbox.operations.lease import Cause
from factorial.mailbox.views.metrics import Counts, Metrics
from factorial.testing import call
from tests.harness import System, quick
from tests.spec.provider import Provider
from tests.support import wait_until

ROOT = Path(__file__).resolve().parents[2]
COUNTED = ("enqueued", "completed", "failed", "cancelled", "retried", "recovered")
SECONDS = MetricsTimelineConfig(timeline_duration=60, bucket_size="seconds")


class Moody(BaseAgent[AgentContext]):
    """Does what the query says: `answer`, `fail`, `stumble` once and then answer, or `hang`. Calls no model."""

    def __init__(self, name: str = "moody") -> None:
        super().__init__(name=name)
        self.stumbled = False

    async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
        """One turn."""
        if agent_ctx.query == "fail":
            raise FatalAgentError("no")
        if agent_ctx.query == "stumble" and not self.stumbled:
            self.stumbled = True
            raise RetryableError("not now")
        if agent_ctx.query == "hang":
            await asyncio.Event().wait()
        return TurnCompletion(is_done=True, context=agent_ctx, output="done")


def counts(counted: Counts) -> dict[str, int]:
    """What was counted, without the zeros and the durations."""
    return {what: counted[what] for what in COUNTED if counted[what]}  # type: ignore[literal-required]


def filled(metrics: Metrics, agent: str) -> list[dict[str, int]]:
    """What was counted in each bucket in which something was."""
    return [found for bucket in metrics["agents"][agent]["buckets"] if (found := counts(bucket))]


def lasted(data: dict[str, Any]) -> float:
    """Seconds from enqueued to ended."""
    return (datetime.fromisoformat(data["ended_at"]) - datetime.fromisoformat(data["created_at"])).total_seconds()


@asynccontextmanager
async def client(system: System, **settings: Any) -> AsyncIterator[Orchestrator]:
    """Another client of the system's namespace, with metrics settings of its own."""
    config = MetricsTimelineConfig(**settings)
    async with Orchestrator(
        redis_url=system.redis.url, namespace=system.redis.namespace, metrics_config=config
    ) as orchestrator:
        yield orchestrator


async def seconds_on_the_server(system: System) -> int:
    return int((await system.execute("TIME"))[0])


async def next_second(system: System) -> None:
    """Wait until the server's clock shows another second."""
    begun = await seconds_on_the_server(system)

    async def later() -> bool:
        return await seconds_on_the_server(system) > begun

    await wait_until(later, message="the next second")


async def bucket_keys(system: System) -> list[bytes]:
    return sorted(await system.execute("KEYS", f"{{{system.redis.namespace}:0}}:bucket:*"))


# -- what is counted


async def test_spec_O12_the_documented_configuration() -> None:
    config = MetricsTimelineConfig(timeline_duration=3600, bucket_size="minutes", retention_multiplier=2.0)
    assert config == MetricsTimelineConfig() == Orchestrator(metrics_config=config).metrics
    assert (config.bucket_duration, config.retention_duration, config.display_name) == (60, 7200, "1h")


async def test_spec_O12_tasks_and_their_durations_are_counted_by_agent(system: System, llmock: LLMock) -> None:
    llmock.reply("Sunny.", times=3)
    weather, planner = Agent(name="weather", model=gpt_41), Agent(name="planner", model=gpt_41)
    for agent in (weather, planner):
        await system.start(agent)
    ids = [await system.submit(agent) for agent in (weather, weather, planner)]
    times = [lasted(await system.ended(task_id)) for task_id in ids]

    metrics = await system.orchestrator.get_metrics()
    assert json.loads(json.dumps(metrics)) == metrics
    assert set(metrics["agents"]) == {"weather", "planner"}
    totals = metrics["agents"]["weather"]["totals"]
    assert counts(totals) == {"enqueued": 2, "completed": 2}
    assert totals["mean_duration"] == {
        "completed": pytest.approx(sum(times[:2]) / 2), "failed": None, "cancelled": None,
    }  # fmt: skip
    assert totals["max_duration"]["completed"] == pytest.approx(max(times[:2]))
    assert counts(metrics["agents"]["planner"]["totals"]) == {"enqueued": 1, "completed": 1}
    assert metrics["agents"]["planner"]["totals"]["mean_duration"]["completed"] == pytest.approx(times[2])

    for either in (weather, "weather"):
        only = await system.orchestrator.get_metrics(either)
        assert set(only["agents"]) == {"weather"}
        assert only["agents"]["weather"]["totals"] == totals


async def test_spec_O12_every_way_to_end_is_counted_and_so_is_every_retry(system: System) -> None:
    agent = Moody()
    ids = {query: await system.submit(agent, query) for query in ("answer", "fail", "stumble", "hang")}
    await system.start(agent)
    for query in ("answer", "fail", "stumble"):
        await system.ended(ids[query])
    await system.reaches(ids["hang"], "processing")
    assert (await system.orchestrator.get_metrics())["agents"]["moody"]["now"]["processing"] == 1
    await system.orchestrator.cancel_task(ids["hang"])
    data = {query: await system.ended(task_id) for query, task_id in ids.items()}

    found = (await system.orchestrator.get_metrics())["agents"]["moody"]
    assert counts(found["totals"]) == {"enqueued": 4, "completed": 2, "failed": 1, "cancelled": 1, "retried": 1}
    assert found["totals"]["mean_duration"] == {
        "completed": pytest.approx((lasted(data["answer"]) + lasted(data["stumble"])) / 2),
        "failed": pytest.approx(lasted(data["fail"])),
        "cancelled": pytest.approx(lasted(data["hang"])),
    }
    assert not any(found["now"].values())


async def test_spec_O12_what_waits_is_told_although_no_process_works_for_it(system: System) -> None:
    agent = Moody()
    ids = [await system.submit(agent) for _ in range(3)]
    await system.orchestrator.cancel_task(ids[0])
    found = (await system.orchestrator.get_metrics())["agents"]["moody"]
    assert counts(found["totals"]) == {"enqueued": 3, "cancelled": 1}
    assert found["now"]["processing"] == 0
    assert 2 <= found["now"]["queued"] <= 3  # a cancelled task's entry stays in the queue until it is passed over


async def test_spec_O12_a_parked_task_waits_and_is_not_in_backoff(system: System, provider: Provider) -> None:
    """Whatever it waits for has a deadline, which stands where those in backoff stand."""
    provider.replies = [call("ask"), "She says yes."]

    @deferred_result(timeout=600)
    def ask() -> None:
        """Ask the manager."""

    agent = Agent(name="clerk", tools=[ask], model=gpt_41)
    await system.start(agent)
    ids = [await system.submit(agent) for _ in range(2)]
    for task_id in ids:
        await system.reaches(task_id, "pending_tool_results")
    now = (await system.orchestrator.get_metrics())["agents"]["clerk"]["now"]
    assert now == {"queued": 0, "processing": 0, "backoff": 0, "parked": 2}

    await system.orchestrator.cancel_task(ids[0])
    data = await system.data(ids[1])
    await system.orchestrator.complete_deferred_tool(ids[1], data["awaits"][0].removeprefix("tool:"), "Yes.")
    await system.ended(ids[1])
    found = (await system.orchestrator.get_metrics())["agents"]["clerk"]
    assert counts(found["totals"]) == {"enqueued": 2, "completed": 1, "cancelled": 1}
    assert not any(found["now"].values())


async def test_spec_O12_a_task_in_backoff_is_told(system: System) -> None:
    agent = Moody()
    task_id = await system.submit(agent, "stumble")
    await system.start(agent, quick(retry_delay=600, max_retry_delay=600))
    await system.reaches(task_id, "backoff")
    found = (await system.orchestrator.get_metrics())["agents"]["moody"]
    assert found["now"] == {"queued": 0, "processing": 0, "backoff": 1, "parked": 0}
    assert counts(found["totals"]) == {"enqueued": 1, "retried": 1}


async def test_spec_O12_a_task_that_is_enqueued_again_counts_once(system: System) -> None:
    agent = Moody()
    task = agent.create_task("owner", AgentContext(query="answer"), task_id="order-17")
    for _ in range(3):
        await system.orchestrator.enqueue_task(agent, task)
    found = (await system.orchestrator.get_metrics(agent))["agents"]["moody"]
    assert counts(found["totals"]) == {"enqueued": 1}


async def test_spec_O12_only_what_a_dead_process_held_counts_as_recovered(system: System) -> None:
    agent = Moody()
    task_id = await system.submit(agent, "hang")
    for cause in (Cause.KILLED, Cause.LEFT):
        process = await system.start(agent)
        await system.reaches(task_id, "processing")
        await process.kill()
        await (await system.mailbox()).reclaim_process(process.name, cause)
    found = (await system.orchestrator.get_metrics())["agents"]["moody"]
    assert counts(found["totals"]) == {"enqueued": 1, "recovered": 1}


async def test_spec_O12_an_agent_of_which_nothing_is_known_is_all_zeros(system: System) -> None:
    assert (await system.orchestrator.get_metrics())["agents"] == {}
    found = (await system.orchestrator.get_metrics("nobody"))["agents"]["nobody"]
    assert not counts(found["totals"]) and not any(found["now"].values())
    assert found["totals"]["mean_duration"] == {"completed": None, "failed": None, "cancelled": None}
    assert len(found["buckets"]) == 60


# -- buckets


async def test_spec_O12_buckets_come_in_order_with_the_empty_ones(system: System) -> None:
    agent = Moody()
    await system.start(agent, metrics=SECONDS)
    async with client(system, timeline_duration=60, bucket_size="seconds") as orchestrator:
        seconds = set()
        for _ in range(2):
            await next_second(system)
            task = await orchestrator.enqueue_task(agent, owner_id="owner", payload=AgentContext(query="answer"))
            data = await system.ended(task.id)
            seconds |= {data["created_at"][:19], data["ended_at"][:19]}
        metrics = await orchestrator.get_metrics()
    buckets = metrics["agents"]["moody"]["buckets"]
    starts = [datetime.fromisoformat(bucket["start"]).timestamp() for bucket in buckets]
    assert starts == [starts[0] + number for number in range(60)]
    assert starts[-1] == int(datetime.fromisoformat(metrics["at"]).timestamp())
    assert {bucket["start"][:19] for bucket in buckets if counts(bucket)} == seconds
    assert len(seconds) >= 2
    for what, count in (("enqueued", 2), ("completed", 2)):
        assert [bucket[what] for bucket in buckets if bucket[what]] == [1] * count  # type: ignore[literal-required]
    assert counts(metrics["agents"]["moody"]["totals"]) == {"enqueued": 2, "completed": 2}


async def test_spec_O12_each_bucket_has_its_own_durations(system: System) -> None:
    """A slow run ends in one bucket and a quick one in another: each has its own durations, the totals have both."""
    agent, payload = Moody(), AgentContext(query="answer")
    async with client(system, timeline_duration=60, bucket_size="seconds") as orchestrator:
        slow_task = await orchestrator.enqueue_task(agent, owner_id="owner", payload=payload)
        for _ in range(2):
            await next_second(system)
        await system.start(agent, metrics=SECONDS)
        slow = lasted(await system.ended(slow_task.id))
        await next_second(system)
        quick_task = await orchestrator.enqueue_task(agent, owner_id="owner", payload=payload)
        fast = lasted(await system.ended(quick_task.id))
        metrics = await orchestrator.get_metrics()
    found = metrics["agents"]["moody"]
    filled = [bucket for bucket in found["buckets"] if bucket["completed"]]
    assert (metrics["bucket_seconds"], len(filled)) == (1, 2) and slow > 1 > fast
    for kind in ("mean_duration", "max_duration"):
        assert [bucket[kind]["completed"] for bucket in filled] == pytest.approx([slow, fast])
        assert not any(bucket[kind]["failed"] for bucket in found["buckets"])
    assert found["totals"]["mean_duration"]["completed"] == pytest.approx((slow + fast) / 2)
    assert found["totals"]["max_duration"]["completed"] == pytest.approx(slow)


async def test_spec_O12_the_default_is_an_hour_by_the_minute(system: System) -> None:
    await system.submit(Moody())
    metrics = await system.orchestrator.get_metrics()
    buckets = metrics["agents"]["moody"]["buckets"]
    assert (metrics["bucket_seconds"], len(buckets)) == (60, 60)
    assert all(bucket["start"].endswith(":00.000Z") for bucket in buckets)
    assert buckets[-1]["enqueued"] + buckets[-2]["enqueued"] == 1  # the minute may have ended since


async def test_spec_O12_buckets_are_kept_for_the_retention(system: System) -> None:
    async with client(system, timeline_duration=600, bucket_size="minutes", retention_multiplier=3) as orchestrator:
        await orchestrator.enqueue_task(Moody(), owner_id="owner", payload=AgentContext(query="answer"))
    [key] = await bucket_keys(system)
    length, kept_for, start = (int(part) for part in key.decode().split(":")[3:6])
    assert (length, kept_for) == (60, 1800)
    assert start <= await seconds_on_the_server(system)
    assert await system.execute("PEXPIRETIME", key) == (start + 60 + 1800) * 1000
    assert await system.execute("PEXPIRETIME", f"{{{system.redis.namespace}:0}}:timeline") == (start + 60 + 1800) * 1000


async def test_spec_O12_old_buckets_go(system: System) -> None:
    async with client(system, timeline_duration=1, bucket_size="seconds", retention_multiplier=1) as orchestrator:
        await orchestrator.enqueue_task(Moody("first"), owner_id="owner", payload=AgentContext(query="answer"))

        async def gone() -> bool:
            return not await bucket_keys(system)

        await wait_until(gone, message="the bucket has gone")
        assert not await system.execute("EXISTS", f"{{{system.redis.namespace}:0}}:timeline")
        assert (await orchestrator.get_metrics())["agents"] == {}


async def test_spec_O12_a_new_bucket_takes_those_that_are_over_off_the_list(system: System) -> None:
    """Another client's are kept."""
    timeline = f"{{{system.redis.namespace}:0}}:timeline"
    payload = AgentContext(query="answer")
    await system.submit(Moody("kept"))
    async with client(system, timeline_duration=1, bucket_size="seconds", retention_multiplier=1) as orchestrator:
        await orchestrator.enqueue_task(Moody("first"), owner_id="owner", payload=payload)
        for _ in range(3):
            await next_second(system)
        await orchestrator.enqueue_task(Moody("second"), owner_id="owner", payload=payload)
        listed = await system.execute("ZRANGE", timeline, 0, -1)
    assert sorted(name.decode().rpartition(":")[2] for name in listed) == ["kept", "second"]


async def test_spec_O12_what_is_older_than_the_timeline_is_not_in_it(system: System) -> None:
    """It is kept longer, and a longer view has it."""
    async with client(system, timeline_duration=2, bucket_size="seconds", retention_multiplier=100) as orchestrator:
        await orchestrator.enqueue_task(Moody(), owner_id="owner", payload=AgentContext(query="answer"))
        for _ in range(3):
            await next_second(system)
        assert not counts((await orchestrator.get_metrics("moody"))["agents"]["moody"]["totals"])
        longer = await orchestrator.get_metrics(timeline=MetricsTimelineConfig(timeline_duration=120))  # 2 minutes
        assert counts(longer["agents"]["moody"]["totals"]) == {"enqueued": 1}


# -- settings that differ


async def test_spec_O12_clients_that_disagree_lose_nothing(system: System) -> None:
    """Each counts in its own buckets, of which the timeline shows the longest."""
    agent = Moody()
    await system.start(agent, metrics=MetricsTimelineConfig(timeline_duration=7200, bucket_size="hours"))
    async with (
        client(system, timeline_duration=60, bucket_size="seconds") as by_seconds,
        client(system, timeline_duration=3600, bucket_size="minutes", retention_multiplier=9) as by_minutes,
    ):
        for orchestrator in (by_seconds, by_minutes, system.orchestrator):
            task = await orchestrator.enqueue_task(agent, owner_id="owner", payload=AgentContext(query="answer"))
            await system.ended(task.id)
        assert len({key.decode().split(":")[3] for key in await bucket_keys(system)}) == 3
        for orchestrator in (by_seconds, by_minutes, system.orchestrator):
            metrics = await orchestrator.get_metrics()
            assert metrics["bucket_seconds"] == 3600
            assert len(metrics["agents"]["moody"]["buckets"]) == 2
            assert counts(metrics["agents"]["moody"]["totals"]) == {"enqueued": 3, "completed": 3}
            assert all(bucket["start"].endswith(":00:00.000Z") for bucket in metrics["agents"]["moody"]["buckets"])


async def test_spec_O12_what_is_counted_finely_can_be_told_coarsely(system: System) -> None:
    agent = Moody()
    async with client(system, timeline_duration=60, bucket_size="seconds") as orchestrator:
        for _ in range(2):
            await orchestrator.enqueue_task(agent, owner_id="owner", payload=AgentContext(query="answer"))
            await next_second(system)
        days = await orchestrator.get_metrics(
            agent, timeline=MetricsTimelineConfig(timeline_duration=3 * 86_400, bucket_size="days")
        )
        assert (days["bucket_seconds"], len(days["agents"]["moody"]["buckets"])) == (86_400, 3)
        assert sum(bucket["enqueued"] for bucket in days["agents"]["moody"]["buckets"]) == 2
        assert len(filled(await orchestrator.get_metrics(), "moody")) == 2


SYSTEM = """
[redis]
url = "{url}"
namespace = "{namespace}"
[metrics]
timeline_duration = 86400
bucket_size = "hours"
[[runner]]
agent = "examples.weather:weather_agent"
"""


@asynccontextmanager
async def running(*arguments: str, cwd: Path) -> AsyncIterator[Path]:
    """`python ARGUMENTS`, whose children are ready; it is stopped in the end. Gives its log."""
    log = cwd / "log"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "OPENAI_"))}
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, cwd=cwd, env=clean | {"PYTHONPATH": str(ROOT)}, stderr=stderr
        )
    try:
        await wait_until(
            lambda: "children are ready" in log.read_text() or process.returncode is not None, 60, "the system is ready"
        )
        assert process.returncode is None, log.read_text()
        yield log
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 60) == 0, log.read_text()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_spec_O12_worker_processes_count_as_the_file_says(system: System, tmp_path: Path) -> None:
    """With a real supervisor and its real processes."""
    (tmp_path / "system.toml").write_text(SYSTEM.format(url=system.redis.url, namespace=system.redis.namespace))
    async with running("-m", "factorial.supervisor", "system.toml", cwd=tmp_path):
        await system.ended(await system.submit(weather_agent, "Where?"), timeout=40)
    metrics = await system.orchestrator.get_metrics()
    assert metrics["bucket_seconds"] == 3600
    assert counts(metrics["agents"][weather_agent.name]["totals"]) == {"enqueued": 1, "completed": 1}


# -- the dashboard's settings


def test_spec_O11_the_documented_configuration() -> None:
    config = ObservabilityConfig(enabled=True, host="0.0.0.0", port=8080, dashboard_name="My AI System")
    assert Orchestrator(observability_config=config).observability == config
    assert ObservabilityConfig().host == "127.0.0.1"
    assert ObservabilityConfig(cors_origins=["*", "https://a.example:8443"]).cors_origins == (
        "*", "https://a.example:8443",
    )  # fmt: skip


RUN = """
from factorial import Agent, ObservabilityConfig, Orchestrator
from factorial.testing import ScriptedModel, say

agent = Agent(name="a", model=ScriptedModel([say("hi")]))

if __name__ == "__main__":
    orchestrator = Orchestrator(
        redis_url="{url}", namespace="{namespace}", observability_config=ObservabilityConfig({settings})
    )
    orchestrator.register_runner(agent)
    orchestrator.run()
"""


@pytest.mark.parametrize(("settings", "lines"), [("enabled=True, port=8080", 1), ("enabled=False", 0)])
async def test_spec_O11_run_says_that_there_is_no_page_yet(
    redis_url: str, namespace: str, tmp_path: Path, settings: str, lines: int
) -> None:
    """With a real supervisor and its real processes."""
    (tmp_path / "run.py").write_text(RUN.format(url=redis_url, namespace=namespace, settings=settings))
    async with running("run.py", cwd=tmp_path) as log:
        pass
    text = log.read_text()
    assert text.count("this release has no dashboard page") == lines
    assert "Traceback" not in text
