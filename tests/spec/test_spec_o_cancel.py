"""Cancelling a run, whatever it is doing: accepted means that it ends as cancelled (O09).

Real: Valkey, HTTP, the openai client, the actors. Fake: the language model, and the lifeline of a worker process.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from factorial import Agent, AgentContext, BaseAgent, ExecutionContext, TurnCompletion, gpt_41
from factorial.errors import InactiveTaskError, InvalidTaskIdError, TaskNotFoundError
from factorial.testing import call, calls
from factorial.tools import forking_tool
from tests.harness import System, quick
from tests.spec.provider import Provider
from tests.spec.situations import SITUATIONS, Situation, Stage, parked
from tests.support import wait_until

ENDS = {"run_completed", "run_failed", "run_cancelled", "agent_output"}


async def ended_as_cancelled(system: System, task_id: str) -> None:
    """It is cancelled, one event says so, and nothing has been published since."""
    data = await system.ended(task_id, timeout=20)
    assert (data["status"], data["payload"]["output"], data["process"]) == ("cancelled", None, None)
    await later_work_is_done(system)
    types = await system.types(task_id, progress=True)
    own = [name for name in types if not name.startswith("batch_")]  # those are about children, which end after it
    assert own[-1] == "run_cancelled"
    assert [name for name in types if name in ENDS] == ["run_cancelled"]


async def later_work_is_done(system: System) -> None:
    """Have a run come and go: whatever was on its way to the mailbox is there now."""

    class Passing(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            return TurnCompletion(is_done=True, context=agent_ctx, output="passed by")

    agent = Passing(name="passing")
    if all(process.runner._agent.name != "passing" for process in system.processes):
        await system.start(agent)
    await system.ended(await system.submit(agent, owner_id="somebody else"), timeout=20)


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda each: str(each.__name__))
async def test_spec_O09_a_run_ends_as_cancelled_whatever_it_is_doing(
    system: System, provider: Provider, situation: Callable[[Stage], Awaitable[Situation]]
) -> None:
    run = await situation(Stage(system, provider))
    cancel, status = system.orchestrator.cancel_task, system.orchestrator.get_task_status
    assert await status(run.task_id) == run.status
    asked = len(provider.calls)
    # A task that no process holds ends at once. Otherwise it is processing until its holder has released it.
    assert await cancel(run.task_id) == ("processing" if run.status == "processing" else "cancelled")
    assert await cancel(run.task_id) in ("processing", "cancelled")
    await asyncio.wait_for(run.is_broken_off(), 20)
    for task_id in [run.task_id, *run.children]:
        await ended_as_cancelled(system, task_id)
    assert await cancel(run.task_id) == "cancelled"
    await ended_as_cancelled(system, run.task_id)
    assert len(provider.calls) == asked  # the model was not asked again
    for process in system.processes:
        await wait_until(lambda process=process: not process.holds, 20)


async def test_spec_O09_a_running_model_call_is_abandoned_at_once(system: System, provider: Provider) -> None:
    """The provider sees the connection close, and the run has ended, long before the call would have."""
    agent = Agent(name="worker", model=gpt_41, request_timeout=600)
    await system.start(agent, quick(turn_timeout=600))
    task_ids = [await system.submit(agent) for _ in range(5)]
    under_way = [await provider.called() for _ in task_ids]
    for task_id in task_ids:  # everything that a run sends by itself is sent: only a signal can reach it now
        await system.event(task_id, "progress_update_completion_started")
    seconds = []
    for task_id, request in zip(task_ids, under_way, strict=True):
        before = time.monotonic()
        assert await system.orchestrator.cancel_task(task_id) == "processing"
        await system.reaches(task_id, "cancelled", timeout=20)
        seconds.append(time.monotonic() - before)
        await request.abandoned()
    assert min(seconds) < 0.5  # the quickest: the machine may have been busy with something else


async def test_spec_O09_all_tools_of_a_turn_are_abandoned(system: System, provider: Provider) -> None:
    begun, broken_off = [], []

    async def wait(seconds: float) -> str:
        """Wait."""
        begun.append(seconds)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            broken_off.append(seconds)
            raise
        return "waited"

    agent = Agent(name="worker", model=gpt_41, tools=[wait])
    await system.start(agent)
    task_id = await system.submit(agent)
    (await provider.called()).answer(calls(*(call("wait", seconds=600.0 + number) for number in range(3))))
    await wait_until(lambda: len(begun) == 3, 20)
    await system.orchestrator.cancel_task(task_id)
    await ended_as_cancelled(system, task_id)
    assert sorted(broken_off) == [600.0, 601.0, 602.0]


async def test_spec_O09_what_swallows_the_cancellation_does_not_save_the_run(
    system: System, provider: Provider
) -> None:
    begun = asyncio.Event()

    async def stubborn() -> str:
        """Do not give up."""
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "I live"
        return ""

    agent = Agent(name="worker", model=gpt_41, tools=[stubborn])
    await system.start(agent)
    task_id = await system.submit(agent)
    (await provider.called()).answer(call("stubborn"))
    await asyncio.wait_for(begun.wait(), 20)
    await system.orchestrator.cancel_task(task_id)
    await ended_as_cancelled(system, task_id)
    assert len(provider.calls) == 1


async def test_spec_O09_what_a_run_has_spawned_is_cancelled_with_it(system: System, provider: Provider) -> None:
    """Three levels deep: the lowest is in a model call, and those above wait for it."""
    agents: list[Agent] = []

    def level(number: int) -> Agent:
        @forking_tool(timeout=600)
        async def fork(execution_ctx: ExecutionContext) -> list[str]:
            """Let another agent work."""
            return [await execution_ctx.spawn_child_task(agents[number + 1], AgentContext(query="part"))]

        return Agent(name=f"level{number}", model=gpt_41, tools=[fork])

    agents += [level(0), level(1), Agent(name="level2", model=gpt_41)]
    for agent in agents:
        await system.start(agent)
    task_id = await system.submit(agents[0], "whole")
    for _ in range(2):
        (await provider.called()).answer(call("fork"))
    under_way = await provider.called()
    statuses: dict[str, str] = {}

    async def all_wait() -> bool:
        enqueued = {event["task_id"] for event in await system.events() if event["event_type"] == "run_enqueued"}
        statuses.update({each: str(await system.orchestrator.get_task_status(each)) for each in enqueued})
        return sorted(statuses.values()) == ["pending_child_tasks", "pending_child_tasks", "processing"]

    await wait_until(all_wait, 20)
    assert await system.orchestrator.cancel_task(task_id) == "cancelled"
    await under_way.abandoned()
    for each in statuses:
        await ended_as_cancelled(system, each)
    assert len(provider.calls) == 3


async def test_spec_O09_what_an_unfinished_tool_has_spawned_is_cancelled_too(
    system: System, provider: Provider
) -> None:
    """The run does not wait for its children yet: the tool is still at it, and one of them works already."""
    child, spawned = Agent(name="child", model=gpt_41), asyncio.Event()

    @forking_tool(timeout=600)
    async def fork(execution_ctx: ExecutionContext) -> list[str]:
        """Have others work."""
        await execution_ctx.spawn_child_tasks(child, [AgentContext(query=f"part {number}") for number in range(5)])
        spawned.set()
        await asyncio.Event().wait()
        return []

    agent = Agent(name="worker", model=gpt_41, tools=[fork])
    await system.start(agent)
    await system.start(child, quick(batch_size=1))
    task_id = await system.submit(agent, "whole")
    (await provider.called()).answer(call("fork"))
    await asyncio.wait_for(spawned.wait(), 20)
    under_way = await provider.called()
    children = {event["task_id"] for event in await system.events()} - {task_id}
    assert len(children) == 5
    assert await system.orchestrator.cancel_task(task_id) == "processing"
    await under_way.abandoned()
    for each in [task_id, *children]:
        await ended_as_cancelled(system, each)
    assert len(provider.calls) == 2


async def test_spec_O09_a_cancelled_child_does_not_cancel_its_parent(system: System, provider: Provider) -> None:
    """The parent reads what became of it, and goes on."""
    child = Agent(name="child", model=gpt_41)

    @forking_tool(timeout=600)
    async def fork(execution_ctx: ExecutionContext) -> list[str]:
        """Let another agent work."""
        return [await execution_ctx.spawn_child_task(child, AgentContext(query="part"))]

    agent = Agent(name="worker", model=gpt_41, tools=[fork])
    await system.start(agent)
    task_id = await system.submit(agent, "whole")
    (await provider.called()).answer(call("fork"))
    await system.reaches(task_id, "pending_child_tasks", timeout=20)
    [child_id] = {event["task_id"] for event in await system.events()} - {task_id}
    assert await system.orchestrator.cancel_task(child_id) == "cancelled"
    request = await provider.called()
    assert "cancelled" in request.messages[-1]["content"]
    request.answer("done without it")
    assert (await system.ended(task_id, timeout=20))["payload"]["output"] == "done without it"
    await ended_as_cancelled(system, child_id)


async def test_spec_O09_a_result_after_the_cancel_is_too_late(system: System, provider: Provider) -> None:
    """The result of the deferred tool arrives when it is not awaited any longer: it is refused, without a crash."""
    run = await parked(Stage(system, provider))
    assert await system.orchestrator.cancel_task(run.task_id) == "cancelled"
    assert not await system.orchestrator.complete_deferred_tool(
        task_id=run.task_id, tool_call_id="call_0_0", result="yes"
    )
    await ended_as_cancelled(system, run.task_id)


async def test_spec_O09_a_cancel_at_any_moment_is_carried_out_or_refused(system: System, provider: Provider) -> None:
    """Forty runs of two turns each, cancelled a little later each: accepted is cancelled, refused had completed."""
    provider.replies = [call("look"), "done"]

    async def look() -> str:
        """Look."""
        return "seen"

    agent = Agent(name="worker", model=gpt_41, tools=[look])
    await system.start(agent, quick(batch_size=50))
    await system.ended(await system.submit(agent))
    moments = 1 + len(await system.events())
    outcomes = []
    for number in range(40):
        task_id = await system.submit(agent)

        async def far_enough(task_id: str = task_id, number: int = number) -> bool:
            return len(await system.events(task_id)) >= number % moments

        await wait_until(far_enough, 20)
        try:
            await system.orchestrator.cancel_task(task_id)
        except InactiveTaskError as refused:
            assert refused.status == "completed"
            outcomes.append("completed")
            assert (await system.data(task_id))["payload"]["output"] == "done"
        else:
            outcomes.append("cancelled")
            await ended_as_cancelled(system, task_id)
        assert (await system.ended(task_id))["status"] == outcomes[-1]
    assert "cancelled" in outcomes


async def test_spec_O09_a_cancel_reaches_the_process_that_holds_the_run(system: System, provider: Provider) -> None:
    agent = Agent(name="worker", model=gpt_41)
    first_process = await system.start(agent, quick(batch_size=1))
    first, first_call = await system.submit(agent), await provider.called()
    second_process = await system.start(agent, quick(batch_size=1))
    second, second_call = await system.submit(agent), await provider.called()
    assert (first_process.holds, second_process.holds) == ({first}, {second})
    await system.orchestrator.cancel_task(second)
    await ended_as_cancelled(system, second)
    await second_call.abandoned()
    first_call.answer("done")
    assert (await system.ended(first))["payload"]["output"] == "done"


async def test_spec_O09_a_queued_run_that_was_cancelled_takes_nobodys_place(system: System, provider: Provider) -> None:
    provider.replies = ["done"]
    agent = Agent(name="worker", model=gpt_41)
    task_ids = [await system.submit(agent, f"question {number}") for number in range(6)]
    for task_id in task_ids[::2]:
        assert await system.orchestrator.cancel_task(task_id) == "cancelled"
    await system.start(agent, quick(batch_size=1))
    for task_id in task_ids[1::2]:
        assert (await system.ended(task_id))["status"] == "completed"
    for task_id in task_ids[::2]:
        await ended_as_cancelled(system, task_id)
    asked = [request.messages[-1]["content"] for request in provider.calls]
    assert asked == ["question 1", "question 3", "question 5"]


async def test_spec_O09_a_cancel_during_a_run_of_ones_own_turns(system: System) -> None:
    """No model, no tool: `run_turn` is overridden, and is abandoned as well."""
    begun, broken_off = asyncio.Event(), asyncio.Event()

    class Patient(BaseAgent[AgentContext]):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                broken_off.set()
                raise
            raise AssertionError("unreachable")

    agent = Patient(name="patient", context_class=AgentContext)
    await system.start(agent)
    task_id = await system.submit(agent)
    await asyncio.wait_for(begun.wait(), 20)
    await system.orchestrator.cancel_task(task_id)
    await asyncio.wait_for(broken_off.wait(), 20)
    await ended_as_cancelled(system, task_id)


@pytest.mark.parametrize("status", ["completed", "failed"])
async def test_spec_O09_a_run_that_has_ended_is_not_cancelled(system: System, provider: Provider, status: str) -> None:
    agent = Agent(name="worker", model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    request = await provider.called()
    request.answer("done") if status == "completed" else request.refuse(400)
    assert (await system.ended(task_id))["status"] == status
    before: list[dict[str, Any]] = await system.events(task_id)
    with pytest.raises(InactiveTaskError, match=rf"task '{task_id}' has ended \({status}\)") as refused:
        await system.orchestrator.cancel_task(task_id)
    assert (refused.value.task_id, refused.value.status) == (task_id, status)
    assert await system.orchestrator.get_task_status(task_id) == status
    assert await system.events(task_id) == before


async def test_spec_O09_a_run_that_is_not_there_is_not_cancelled(system: System) -> None:
    with pytest.raises(TaskNotFoundError, match="there is no task 'unknown'"):
        await system.orchestrator.cancel_task("unknown")
    with pytest.raises(InvalidTaskIdError, match="is not a task id"):
        await system.orchestrator.cancel_task("no id, surely")


async def test_spec_O09_a_pause_before_the_model_is_asked_again_is_not_waited_for(
    system: System, provider: Provider
) -> None:
    agent = Agent(name="worker", model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    (await provider.called()).refuse(429, retry_after="9")
    await system.event(task_id, "progress_update_completion_started")
    before = time.monotonic()
    await system.orchestrator.cancel_task(task_id)
    await ended_as_cancelled(system, task_id)
    assert time.monotonic() - before < 8
    assert len(provider.calls) == 1
