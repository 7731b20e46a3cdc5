"""Cancelling a task in every state: accepted means that it ends as cancelled.

Real: actors, mailbox, Valkey. Fake: the lifeline, and the model, which is scripted.
"""

import asyncio
import time
from typing import Any

import pytest

from factorial import Agent, AgentContext, BaseAgent, ModelSettings, RetryableError, TurnCompletion
from factorial.errors import InactiveTaskError, InvalidTaskIdError, TaskNotFoundError
from factorial.mailbox.script import Scripts
from factorial.testing import ScriptedModel, call, say
from tests.harness import System, quick
from tests.support import PATIENCE, wait_until


class Held(Agent):
    """Its model call waits until the test opens the gate, and notes whether it was abandoned."""

    def __init__(self, name: str = "held", **options: Any) -> None:
        super().__init__(name=name, model=ScriptedModel(["done"] * 3), **options)
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.abandoned = asyncio.Event()

    async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
        self.begun.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.abandoned.set()
            raise
        return await super().completion(agent_ctx, messages)


async def ended_as_cancelled(system: System, task_id: str) -> None:
    data = await system.ended(task_id)
    assert data["status"] == "cancelled"
    assert data["payload"]["output"] is None
    types = await system.types(task_id)
    assert types[-1] == "run_cancelled"
    assert types.count("run_cancelled") == 1
    assert not {"run_completed", "run_failed", "agent_output"} & set(types)


async def test_a_queued_task_ends_at_once(system: System) -> None:
    agent = Held()
    task_id = await system.submit(agent)
    assert await system.orchestrator.cancel_task(task_id) == "cancelled"
    assert await system.orchestrator.get_task_status(task_id) == "cancelled"
    await system.start(agent)
    other = await system.submit(agent)
    await asyncio.wait_for(agent.begun.wait(), 5)
    agent.gate.set()
    assert (await system.ended(other))["status"] == "completed"
    await ended_as_cancelled(system, task_id)


async def test_a_task_in_backoff_ends_at_once(system: System) -> None:
    class Failing(Agent):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            raise RetryableError("again")

    agent = Failing(name="failing")
    await system.start(agent, quick(retry_delay=60, max_retry_delay=60))
    task_id = await system.submit(agent)
    await system.reaches(task_id, "backoff")
    assert await system.orchestrator.cancel_task(task_id) == "cancelled"
    await ended_as_cancelled(system, task_id)


async def test_a_model_call_in_flight_is_abandoned_at_once(system: System) -> None:
    agent = Held()
    await system.start(agent)
    task_id = await system.submit(agent)
    await asyncio.wait_for(agent.begun.wait(), 5)
    # Nothing more is sent by the run itself: only a signal can reach it now.
    await system.event(task_id, "progress_update_completion_started")
    before = time.monotonic()
    assert await system.orchestrator.cancel_task(task_id) == "processing"
    await asyncio.wait_for(agent.abandoned.wait(), 5)
    await ended_as_cancelled(system, task_id)
    assert time.monotonic() - before < 0.5


async def test_a_tool_in_flight_is_abandoned_and_its_neighbour_is_not_called(system: System) -> None:
    begun, called = asyncio.Event(), []

    async def endless() -> str:
        """Wait."""
        begun.set()
        await asyncio.Event().wait()
        return ""

    async def later() -> str:
        """Note the call."""
        called.append(1)
        return ""

    agent = Agent(name="a", tools=[endless, later], model=ScriptedModel([call("endless"), call("later"), say("no")]))
    await system.start(agent)
    task_id = await system.submit(agent)
    await asyncio.wait_for(begun.wait(), 5)
    await system.orchestrator.cancel_task(task_id)
    await ended_as_cancelled(system, task_id)
    assert not called


async def test_a_tool_that_swallows_the_cancellation_does_not_save_the_run(system: System) -> None:
    begun = asyncio.Event()

    async def stubborn() -> str:
        """Refuse to die."""
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "I live"
        return ""

    agent = Agent(name="a", tools=[stubborn], model=ScriptedModel([call("stubborn"), say("done")]))
    await system.start(agent)
    task_id = await system.submit(agent)
    await asyncio.wait_for(begun.wait(), 5)
    await system.orchestrator.cancel_task(task_id)
    await ended_as_cancelled(system, task_id)


async def test_between_turns(system: System) -> None:
    """The cancel comes while a turn is committed: no further turn is taken."""
    held = Held()
    turns = []

    async def again() -> str:
        """Go on."""
        turns.append(1)
        return "on"

    agent = Agent(name="busy", tools=[again], model=ScriptedModel(lambda messages: call("again")))
    del held
    await system.start(agent)
    task_id = await system.submit(agent)
    await wait_until(lambda: len(turns) > 5)
    await system.orchestrator.cancel_task(task_id)
    await ended_as_cancelled(system, task_id)
    before = len(turns)
    await asyncio.sleep(0.05)
    assert len(turns) == before


async def test_a_cancel_against_a_completion_ends_one_way_or_the_other(system: System) -> None:
    """Either it was accepted, and the task is cancelled; or the task had completed, and the caller is told."""
    agent = Agent(name="quick", model=ScriptedModel(["done"]))
    await system.start(agent, quick(workers=2, batch_size=50))
    outcomes = []
    for number in range(60):
        task_id = await system.submit(agent)
        await asyncio.sleep(number % 12 / 4000)
        try:
            await system.orchestrator.cancel_task(task_id)
        except InactiveTaskError:
            outcomes.append("completed")
        else:
            outcomes.append("cancelled")
        assert (await system.ended(task_id))["status"] == outcomes[-1]
        types = await system.types(task_id)
        assert types[-1] == f"run_{outcomes[-1]}"
        assert ("agent_output" in types) == (outcomes[-1] == "completed")
    assert set(outcomes) == {"completed", "cancelled"}


async def test_a_cancel_while_the_last_call_is_answered_wins_over_the_answer(system: System) -> None:
    """The flag is in the mailbox, and the signal is lost: the commit hears of it."""
    agent = Held()
    process = await system.start(agent)
    task_id = await system.submit(agent)
    await asyncio.wait_for(agent.begun.wait(), 5)
    mailbox = await system.mailbox()
    await mailbox.connection.execute("HSET", mailbox.keys.run(task_id), "cancel_requested", "1")
    agent.gate.set()
    await ended_as_cancelled(system, task_id)
    await wait_until(lambda: not process.holds, message="the process to let go of it")


async def test_a_cancel_is_heard_by_the_process_that_holds_the_task(system: System) -> None:
    agent = Held()
    await system.start(agent, quick(batch_size=1))
    first = await system.submit(agent)
    await asyncio.wait_for(agent.begun.wait(), 5)
    other = Held()
    await system.start(other, quick(batch_size=1))
    second = await system.submit(agent)
    await asyncio.wait_for(other.begun.wait(), 5)
    await system.orchestrator.cancel_task(second)
    await ended_as_cancelled(system, second)
    assert other.abandoned.is_set() and not agent.abandoned.is_set()
    agent.gate.set()
    assert (await system.ended(first))["status"] == "completed"


async def test_all_tasks_of_a_full_worker_are_cancelled(system: System) -> None:
    """A process without a free slot hears its signals all the same."""
    agent = Held()
    process = await system.start(agent, quick(batch_size=5))
    task_ids = [await system.submit(agent) for _ in range(8)]
    await wait_until(lambda: len(process.holds) == 5)
    for task_id in task_ids:
        await system.orchestrator.cancel_task(task_id)
    for task_id in task_ids:
        await ended_as_cancelled(system, task_id)
    await wait_until(lambda: not process.holds)


async def test_cancel_twice_and_cancel_of_what_is_not_there(system: System) -> None:
    agent = Held()
    task_id = await system.submit(agent)
    for _ in range(2):
        assert await system.orchestrator.cancel_task(task_id) == "cancelled"
    with pytest.raises(TaskNotFoundError, match="there is no task 'unknown'"):
        await system.orchestrator.cancel_task("unknown")
    with pytest.raises(InvalidTaskIdError, match="is not a task id"):
        await system.orchestrator.cancel_task("no id, surely")


async def test_a_cancelled_task_is_cancelled_in_a_request_of_the_real_transport_too(system: System) -> None:
    """The same with the model's own delay, and settings that are functions of the context."""
    agent = Agent(
        name="slow",
        model=ScriptedModel(["done"], delay=60),
        model_settings=ModelSettings(temperature=lambda ctx: 0.5),
    )
    await system.start(agent)
    task_id = await system.submit(agent)
    await system.event(task_id, "progress_update_completion_started")
    await system.orchestrator.cancel_task(task_id)
    await ended_as_cancelled(system, task_id)


class SlowCascade:
    """Lets commands through to the real server, and takes its time with the answer to `cascade.lua`."""

    def __init__(self, scripts: Scripts) -> None:
        self.commands = scripts.commands
        self.cascade = scripts._load("cascade")
        self.asked = 0

    async def execute(self, *args: Any) -> Any:
        """The answer."""
        answer = await self.commands.execute(*args)
        if args[1] in self.cascade:
            self.asked += 1
            await asyncio.sleep(0.2)
        return answer


async def test_whoever_cancels_once_more_does_not_break_off_what_is_told_of_the_end(system: System) -> None:
    """The second signal comes after the run has ended, while what it has spawned is looked for."""
    told = []
    started = asyncio.Event()

    class Endless(BaseAgent[AgentContext]):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            started.set()
            await asyncio.Event().wait()
            raise AssertionError("unreachable")

    agent = Endless(name="endless", model=ScriptedModel(["x"]), on_run_cancelled=lambda *_: told.append(1))
    process = await system.start(agent)
    scripts = process.mailbox.scripts
    between = scripts.commands = SlowCascade(scripts)
    task_id = await system.submit(agent)
    await asyncio.wait_for(started.wait(), PATIENCE)
    await system.orchestrator.cancel_task(task_id)
    await wait_until(lambda: between.asked)
    await system.execute("RPUSH", scripts.keys.signals(process.name), f"cancel {task_id}")
    await wait_until(lambda: not process.holds)
    assert told == [1]
