"""Retries, backoff, time limits and the ways in which a run fails.

Real: actors, mailbox, Valkey. Fake: the lifeline, and the model, which is scripted.
"""

import asyncio
import json
import logging
from typing import Any

import pytest

from factorial import Agent, AgentContext, BaseAgent, ExecutionContext, FatalAgentError, RetryableError, TurnCompletion
from factorial.errors import ContextError, InactiveTaskError, ModelError, RateLimitError
from factorial.testing import ScriptedModel, call, calls, say
from tests.harness import System, quick
from tests.support import wait_until


class Failing(Agent):
    """Fails its first `times` model calls with `error`."""

    def __init__(self, error: Exception, times: int = 10**6, replies: Any = ("done",), **options: Any) -> None:
        super().__init__(name="failing", model=ScriptedModel(list(replies)), **options)
        self.error = error
        self.times = times
        self.tried = 0

    async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
        self.tried += 1
        if self.tried <= self.times:
            raise self.error
        return await super().completion(agent_ctx, messages)


async def test_a_failed_turn_is_retried_and_tells_so(system: System) -> None:
    agent = Failing(RuntimeError("bad luck"), times=2)
    await system.start(agent)
    task_id = await system.submit(agent)
    data = await system.ended(task_id)
    assert data["status"] == "completed"
    assert data["payload"]["output"] == "done"
    assert data["pickups"] == 3
    assert data["retries"] == 0  # a finished turn starts the count afresh
    assert data["error"] is None
    assert await system.types(task_id) == [
        "run_enqueued", "run_started", "task_failed", "task_retried", "task_failed", "task_retried",
        "agent_output", "run_completed",
    ]  # fmt: skip
    failed = await system.event(task_id, "task_failed")
    assert failed["error"] == "RuntimeError: bad luck"
    retried = await system.event(task_id, "task_retried")
    assert 0 < retried["data"]["delay"] <= 0.05


async def test_when_the_retries_are_spent_the_run_fails(system: System) -> None:
    agent = Failing(RuntimeError("bad luck"))
    await system.start(agent, quick(max_retries=2))
    task_id = await system.submit(agent)
    data = await system.ended(task_id)
    assert data["status"] == "failed"
    assert data["error"] == "RuntimeError: bad luck"
    assert agent.tried == 3
    failed = await system.event(task_id, "run_failed")
    assert failed["error"] == (
        f"Agent failing failed to complete task {task_id} due to max retries (2): RuntimeError: bad luck"
    )
    types = await system.types(task_id)
    assert (types.count("task_failed"), types.count("task_retried"), types[-1]) == (3, 2, "run_failed")


async def test_no_retries_at_all(system: System) -> None:
    agent = Failing(ModelError("the provider is on fire"))
    await system.start(agent, quick(max_retries=0))
    data = await system.ended(await system.submit(agent))
    assert (data["status"], agent.tried, data["error"]) == ("failed", 1, "the provider is on fire")


async def test_a_finished_turn_starts_the_count_of_retries_afresh(system: System) -> None:
    """Two failures in each of three turns, and at most two retries: no turn fails too often."""
    tries: dict[int, int] = {}

    class Stumbling(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            tries[agent_ctx.turn] = tries.get(agent_ctx.turn, 0) + 1
            if tries[agent_ctx.turn] <= 2:
                raise RetryableError("stumbled")
            return TurnCompletion(is_done=agent_ctx.turn == 2, context=agent_ctx, output="there")

    agent = Stumbling(name="stumbling")
    await system.start(agent, quick(max_retries=2))
    data = await system.ended(await system.submit(agent))
    assert (data["status"], data["error"]) == ("completed", None)
    assert tries == {0: 3, 1: 3, 2: 3}


async def test_the_delay_grows_and_is_bounded(system: System) -> None:
    agent = Failing(RuntimeError("bad luck"))
    await system.start(agent, quick(max_retries=4, retry_delay=0.02, max_retry_delay=0.05))
    task_id = await system.submit(agent)
    await system.ended(task_id)
    delays = [one["data"]["delay"] for one in await system.events(task_id) if one["event_type"] == "task_retried"]
    for delay, most in zip(delays, [0.02, 0.04, 0.05, 0.05], strict=True):
        assert most / 2 - 0.001 <= delay <= most + 0.001


async def test_a_retry_after_of_the_provider_is_honoured(system: System) -> None:
    """And holds no worker meanwhile: the run waits in the mailbox."""

    def busy(messages: Any) -> str:
        raise RateLimitError("slow down", retry_after=40.0, status=429)

    agent = Agent(name="busy", model=ScriptedModel(busy))
    process = await system.start(agent)
    task_id = await system.submit(agent)
    await system.reaches(task_id, "backoff")
    await wait_until(lambda: not process.holds, message="the process to let go of it")
    delay = (await system.event(task_id, "task_deferred"))["data"]["delay"]
    assert 40 <= delay <= 44
    due = await system.execute("ZSCORE", (await system.mailbox()).keys.prefix + "due:busy", task_id)
    now = int((await system.execute("TIME"))[0])
    assert delay - 30 < float(due) / 1000 - now < delay + 1.1  # `now` is rounded down


@pytest.mark.parametrize("error", [FatalAgentError("no way"), ContextError("unfit"), NotImplementedError("later")])
async def test_what_another_try_would_meet_again_ends_the_run_at_once(system: System, error: Exception) -> None:
    agent = Failing(error)
    await system.start(agent)
    task_id = await system.submit(agent)
    data = await system.ended(task_id)
    assert (data["status"], agent.tried) == ("failed", 1)
    explanation = (await system.event(task_id, "run_failed"))["error"]
    assert explanation.startswith(f"Agent failing failed to complete task {task_id}: ")
    assert str(error) in explanation
    assert "task_retried" not in await system.types(task_id)


async def test_a_fatal_error_in_a_tool_ends_the_run_an_ordinary_one_is_shown(system: System) -> None:
    def shaky() -> str:
        """Shake."""
        raise ValueError("it shook")

    def deadly() -> str:
        """Die."""
        raise FatalAgentError("it is over")

    agent = Agent(
        name="tools", tools=[shaky, deadly], model=ScriptedModel([call("shaky"), call("deadly"), say("never")])
    )
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert (data["status"], data["error"]) == ("failed", "it is over")
    assert data["payload"]["messages"][-1]["content"] == "Error: ValueError: it shook"


async def test_a_turn_that_takes_too_long_is_retried(system: System) -> None:
    slow = asyncio.Event()

    class Dawdling(Agent):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            if not slow.is_set():
                slow.set()
                await asyncio.sleep(60)
            return await super().completion(agent_ctx, messages)

    agent = Dawdling(name="dawdling", model=ScriptedModel(["at last"]))
    await system.start(agent, quick(turn_timeout=0.1))
    task_id = await system.submit(agent)
    data = await system.ended(task_id)
    assert data["payload"]["output"] == "at last"
    failed = await system.event(task_id, "task_failed")
    assert failed["error"] == "turn 0 took longer than turn_timeout=0.1 seconds"


async def test_the_run_ends_within_max_turns(system: System) -> None:
    """The last turn asks for an answer; a model that goes on calling tools makes the run fail."""

    def again() -> str:
        """Go on."""
        return "on"

    agent = Agent(name="endless", tools=[again], model=ScriptedModel(lambda messages: call("again")), max_turns=3)
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert data["status"] == "failed"
    assert data["error"] == "the run was not done within max_turns=3"
    assert data["payload"]["turn"] == 3
    assert sum(message["role"] == "assistant" for message in data["payload"]["messages"]) == 3


async def test_user_code_that_raises_cancelled_error_does_not_leave_the_run_behind(system: System) -> None:
    """A sub-task that somebody cancelled, awaited in an agent's method: the turn has failed, and is retried."""

    class Strange(Agent):
        tried = 0

        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            Strange.tried += 1
            if Strange.tried == 1:
                raise asyncio.CancelledError
            return TurnCompletion(is_done=True, context=agent_ctx, output="well")

    agent = Strange(name="strange")
    await system.start(agent)
    task_id = await system.submit(agent)
    assert (await system.ended(task_id))["status"] == "completed"
    assert "cancelled" in (await system.event(task_id, "task_failed"))["error"]


# -- contexts that cannot be stored, or read


class Counting(AgentContext):
    """A context with a field of its own."""

    count: int = 0


async def test_a_context_that_does_not_serialise_is_refused_before_anything_is_stored(system: System) -> None:
    agent = Agent(name="a", model=ScriptedModel(["hi"]))
    for payload in (
        AgentContext(query="q", handle=object()),  # type: ignore[call-arg]
        AgentContext(query="q", messages=[{"role": "user", "content": object()}]),
        AgentContext(query="q", note="\ud800"),  # type: ignore[call-arg]
        AgentContext(query="q", messages=[{"role": "user", "content": "\ud800"}]),
    ):
        with pytest.raises(ContextError, match=r"(handle|note|messages\[0\]).* cannot be stored as JSON"):
            await system.submit(agent, payload)
    assert await system.events() == []
    assert await system.execute("KEYS", (await system.mailbox()).keys.prefix + "run:*") == []


async def test_a_context_that_stops_serialising_within_a_turn_fails_the_run_and_names_the_field(
    system: System,
) -> None:
    def spoil(agent_ctx: AgentContext) -> str:
        """Spoil the context."""
        agent_ctx.handle = object()  # type: ignore[attr-defined]
        return "spoilt"

    agent = Agent(name="spoiling", tools=[spoil], model=ScriptedModel([call("spoil"), say("never")]))
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert data["status"] == "failed"
    assert "AgentContext.handle (object) cannot be stored as JSON" in data["error"]
    assert data["payload"]["turn"] == 0


async def test_an_output_that_does_not_serialise_fails_the_run(system: System) -> None:
    class Odd(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            return TurnCompletion(is_done=True, context=agent_ctx, output=object())

    agent = Odd(name="odd")
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert (data["status"], data["payload"]["output"]) == ("failed", None)
    assert "the output (object) cannot be stored as JSON" in data["error"]


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("fields", ["HSET", "turn", '"many"']),
        ("fields", ["HSET", "query", "{broken"]),
        ("fields", ["DEL"]),
        ("conversation", ["RPUSH", "{broken"]),
        ("mail", ["RPUSH", "{broken"]),
        ("journal", ["HSET", "completion", "{}", "context:completion", "{broken"]),
    ],
)
async def test_a_run_whose_stored_data_cannot_be_read_fails_with_a_clear_error(
    system: System, kind: str, damage: list[str]
) -> None:
    """And the worker lives on."""
    agent = Agent(name="a", model=ScriptedModel(["hi"]))
    task_id = await system.submit(agent)
    verb, *values = damage
    prefix = (await system.mailbox()).keys.prefix
    await system.execute("HSET", f"{prefix}run:{task_id}", "pickups", 1)  # or there could be no journal
    await system.execute(verb, f"{prefix}{kind}:{task_id}", *values)
    await system.start(agent)
    status = system.orchestrator.get_task_status
    await wait_until(lambda: _is(status(task_id), "failed"))
    explanation = (await system.event(task_id, "run_failed"))["error"]
    assert explanation.startswith(f"Agent a failed to complete task {task_id}: ")
    assert (await system.ended(await system.submit(agent)))["status"] == "completed"


async def _is(awaitable: Any, value: str) -> bool:
    return bool(await awaitable == value)


async def test_a_task_whose_context_class_is_another_fails_with_a_clear_error(system: System) -> None:
    """The release that runs it now has a field that the one that enqueued it did not know."""
    old = Agent(name="versioned", model=ScriptedModel(["hi"]))

    class Newer(AgentContext):
        needed: int

    new: BaseAgent[Newer] = BaseAgent(name="versioned", model=ScriptedModel(["hi"]), context_class=Newer)
    task_id = await system.submit(old)
    await system.start(new, quick(code_patience=0.0))
    data = await system.ended(task_id)
    assert data["status"] == "failed"
    assert data["error"] == "the stored context does not fit Newer: needed: Field required"


async def test_a_failed_task_takes_no_cancel_and_no_steering(system: System) -> None:
    agent = Failing(FatalAgentError("over"))
    await system.start(agent)
    task_id = await system.submit(agent)
    await system.ended(task_id)
    with pytest.raises(InactiveTaskError, match="failed"):
        await system.orchestrator.cancel_task(task_id)
    with pytest.raises(InactiveTaskError, match="failed"):
        await system.orchestrator.steer_task(task_id, [{"role": "user", "content": "go on"}])


async def test_many_runs_fail_and_others_are_not_held_up(system: System) -> None:
    """Each run's failure is its own."""

    def odd_ones_fail(messages: Any) -> Any:
        number = int(messages[-1]["content"])
        if number % 2:
            raise ModelError(f"{number} is odd", retry_after=99.0)
        return say(str(number))

    agent = Agent(name="picky", model=ScriptedModel(odd_ones_fail))
    await system.start(agent, quick(max_retries=0, workers=2, batch_size=3))
    task_ids = [await system.submit(agent, str(number)) for number in range(20)]
    ended = [await system.ended(task_id) for task_id in task_ids]
    assert [data["status"] for data in ended] == ["completed", "failed"] * 10
    assert [data["payload"]["output"] for data in ended[::2]] == [str(number) for number in range(0, 20, 2)]
    assert json.dumps(ended[1]["error"]) == '"1 is odd"'


async def test_parallel_tools_all_finish_before_an_error_goes_on(system: System) -> None:
    """The tool beside the failing one is not repeated."""
    counted = {"steady": 0, "shaky": 0}

    async def steady() -> str:
        """Work."""
        await asyncio.sleep(0.05)
        counted["steady"] += 1
        return "steady"

    async def shaky() -> str:
        """Fail at first."""
        counted["shaky"] += 1
        if counted["shaky"] == 1:
            raise RetryableError("not yet")
        return "shaky"

    model = ScriptedModel([calls(call("shaky"), call("steady")), say("both")])
    agent = Agent(name="parallel", tools=[steady, shaky], model=model)
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert data["payload"]["output"] == "both"
    assert counted == {"steady": 1, "shaky": 2}


async def test_a_field_whose_name_is_no_utf8_harms_nobody(system: System) -> None:
    """Whoever has written it: the process that takes that run up lives, and works on."""
    agent = Agent(name="a", model=ScriptedModel(lambda messages: say("done")))
    damaged, other = await system.submit(agent), await system.submit(agent)
    await system.execute("HSET", (await system.mailbox()).keys.key("fields", damaged), b"\xff", b"1")
    process = await system.start(agent)
    for task_id in (other, damaged):
        assert (await system.ended(task_id))["status"] == "completed"
    assert process.life is not None and not process.life.done()


async def test_the_duration_in_the_log_counts_from_the_enqueueing_over_all_claims(
    system: System, caplog: pytest.LogCaptureFixture
) -> None:
    """The task was enqueued two minutes before the first worker came, and its turn is tried twice."""

    class Flaky(Agent):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            if ExecutionContext.current().retries == 0:
                raise RetryableError("once more")
            return await super().completion(agent_ctx, messages)

    agent = Flaky(name="flaky", model=ScriptedModel([say("done")]))
    task_id = await system.submit(agent)
    run = (await system.mailbox()).keys.run(task_id)
    created_at = int(await system.execute("HGET", run, "created_at"))
    await system.execute("HSET", run, "created_at", created_at - 120_000)
    with caplog.at_level(logging.INFO, "factorial.task"):
        await system.start(agent)
        assert (await system.ended(task_id))["pickups"] == 2
        await wait_until(lambda: "completed after 1 turn" in caplog.text)
    [seconds] = [vars(record)["seconds"] for record in caplog.records if vars(record).get("event") == "completed"]
    assert 120 <= seconds < 150
