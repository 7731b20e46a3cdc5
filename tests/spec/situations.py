"""A run in each of the states in which it may be cancelled or steered.

`SITUATIONS` are functions that bring a run there and give a `Situation`: what its status is, how to let it go on, and
how to see that it was broken off. In all of them the question is "hello", the agent is `worker`, and its model is
behind the test's HTTP server.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from factorial import Agent, AgentContext, ExecutionContext, deferred_result, gpt_41
from factorial.testing import call
from factorial.tools import forking_tool
from tests.harness import Process, System, quick
from tests.spec.provider import Provider
from tests.support import wait_until

__all__ = ["SITUATIONS", "Situation", "Stage", "ended_as"]

LOOKED = ["user: hello", "assistant: look()", "tool: seen"]


class Stage:
    """The system, the provider, and an agent whose tool `look` waits until the test opens the gate."""

    def __init__(self, system: System, provider: Provider) -> None:
        self.system = system
        self.provider = provider
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.broken_off = asyncio.Event()

        async def look() -> str:
            """Look."""
            self.begun.set()
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.broken_off.set()
                raise
            return "seen"

        self.look = look
        self.agent = Agent(name="worker", model=gpt_41, tools=[look])

    async def start(self, **worker: Any) -> Process:
        """Start a process for the agent."""
        return await self.system.start(self.agent, quick(**worker))

    async def open(self) -> None:
        """Let the tool go on."""
        self.gate.set()

    async def is_broken_off(self) -> None:
        """Wait until the tool's asyncio task has been cancelled."""
        await asyncio.wait_for(self.broken_off.wait(), 20)

    async def looks(self) -> str:
        """A run whose tool has begun, and its id."""
        task_id = await self.system.submit(self.agent, "hello")
        (await self.provider.called()).answer(call("look"))
        await asyncio.wait_for(self.begun.wait(), 20)
        return task_id


async def nothing() -> None:
    """Nothing is under way."""


@dataclass
class Situation:
    """Where a run is."""

    task_id: str
    status: str
    go_on: Callable[[], Awaitable[Any]]
    """Let the run go on, until it asks the model again."""
    conversation: list[str]
    """What the model is sent then, without what was steered meanwhile. "tool: ..." stands for any result."""
    is_broken_off: Callable[[], Awaitable[None]] = nothing
    """Wait until what was under way has been abandoned."""
    children: list[str] = field(default_factory=list)


async def queued(stage: Stage) -> Situation:
    """No process has claimed it."""
    task_id = await stage.system.submit(stage.agent, "hello")
    return Situation(task_id, "queued", stage.start, ["user: hello"])


async def backing_off(stage: Stage) -> Situation:
    """Its first model call has failed, and it waits for its next try."""
    await stage.start(retry_delay=600, max_retry_delay=600)
    task_id = await stage.system.submit(stage.agent, "hello")
    (await stage.provider.called()).garble()
    await stage.system.reaches(task_id, "backoff")

    async def time_passes() -> None:
        due = (await stage.system.mailbox()).keys.prefix + "due:worker"
        await stage.system.execute("ZADD", due, 1, task_id)

    return Situation(task_id, "backoff", time_passes, ["user: hello"])


async def between_turns(stage: Stage) -> Situation:
    """Its process has left after the first turn."""
    process = await stage.start()
    task_id = await stage.looks()
    process.lifeline.draining.set()
    stage.gate.set()
    await process.drain()
    assert (await stage.system.data(task_id))["payload"]["turn"] == 1
    return Situation(task_id, "queued", stage.start, LOOKED)


async def within_a_turn(stage: Stage) -> Situation:
    """Its process has left after the model's answer: the tool is still to be called."""
    process = await stage.start()
    task_id = await stage.system.submit(stage.agent, "hello")
    answer = await stage.provider.called()
    process.lifeline.draining.set()
    answer.answer(call("look"))
    await process.drain()
    stage.gate.set()
    return Situation(task_id, "queued", stage.start, LOOKED)


async def in_a_model_call(stage: Stage) -> Situation:
    """The model is going to call a tool."""
    await stage.start()
    task_id = await stage.system.submit(stage.agent, "hello")
    under_way = await stage.provider.called()
    stage.gate.set()

    async def answered() -> None:
        under_way.answer(call("look"))

    return Situation(task_id, "processing", answered, LOOKED, under_way.abandoned)


async def in_the_last_model_call(stage: Stage) -> Situation:
    """The model is going to end the run."""
    await stage.start()
    task_id = await stage.system.submit(stage.agent, "hello")
    under_way = await stage.provider.called()

    async def answered() -> None:
        under_way.answer("done at once")

    return Situation(
        task_id, "processing", answered, ["user: hello", "assistant: done at once"], under_way.abandoned
    )  # fmt: skip


async def in_a_streamed_model_call(stage: Stage) -> Situation:
    """The same, and the agent has asked for a stream."""
    stage.agent.stream = True
    await stage.start()
    task_id = await stage.system.submit(stage.agent, "hello")
    under_way = await stage.provider.called()
    assert under_way.body["stream"] is True
    stage.gate.set()

    async def answered() -> None:
        under_way.answer(call("look"))

    return Situation(task_id, "processing", answered, LOOKED, under_way.abandoned)


async def in_a_tool(stage: Stage) -> Situation:
    """The tool is a coroutine."""
    await stage.start()
    task_id = await stage.looks()
    return Situation(task_id, "processing", stage.open, LOOKED, stage.is_broken_off)


async def in_a_thread(stage: Stage) -> Situation:
    """The tool is a plain function, which nothing can break off: it is not waited for."""
    begun, gate = threading.Event(), threading.Event()

    def look() -> str:
        """Look."""
        begun.set()
        gate.wait(20)
        return "seen"

    async def opened() -> None:
        gate.set()

    stage.agent = Agent(name="worker", model=gpt_41, tools=[look])
    await stage.start()
    task_id = await stage.system.submit(stage.agent, "hello")
    (await stage.provider.called()).answer(call("look"))
    await wait_until(begun.is_set, 20)
    return Situation(task_id, "processing", opened, LOOKED, opened)


async def held_by_a_dead_process(stage: Stage) -> Situation:
    """Its process was killed in a model call, and that has not been noticed yet."""
    process = await stage.start(heartbeat_interval=0.2, missed_heartbeats=2)
    task_id = await stage.system.submit(stage.agent, "hello")
    await stage.provider.called()
    await process.kill()

    async def another_comes() -> None:
        await stage.start()

    return Situation(task_id, "processing", another_comes, ["user: hello"], another_comes)


async def parked(stage: Stage) -> Situation:
    """It awaits the result of a deferred tool, and no process holds it."""

    @deferred_result(timeout=600)
    async def ask() -> None:
        """Ask a person."""

    stage.agent = Agent(name="worker", model=gpt_41, tools=[ask])
    process = await stage.start()
    task_id = await stage.system.submit(stage.agent, "hello")
    asked = await stage.provider.called()
    asked.answer(call("ask"))
    await stage.system.reaches(task_id, "pending_tool_results")
    await wait_until(lambda: not process.holds)

    async def result_comes() -> None:
        assert await stage.system.orchestrator.complete_deferred_tool(
            task_id=task_id, tool_call_id=f"call_{asked.number}_0", result="yes"
        )

    return Situation(
        task_id, "pending_tool_results", result_comes, ["user: hello", "assistant: ask()", "tool: yes"]
    )  # fmt: skip


async def with_children(stage: Stage) -> Situation:
    """It waits for two children: one is in a model call, the other one is queued."""
    child = Agent(name="child", model=gpt_41)

    @forking_tool(timeout=600)
    async def fork(execution_ctx: ExecutionContext) -> list[str]:
        """Have others work."""
        return [await execution_ctx.spawn_child_task(child, AgentContext(query=f"part {n}")) for n in (1, 2)]

    stage.agent = Agent(name="worker", model=gpt_41, tools=[fork])
    await stage.start()
    task_id = await stage.system.submit(stage.agent, "hello")
    (await stage.provider.called()).answer(call("fork"))
    await stage.system.reaches(task_id, "pending_child_tasks")
    enqueued = [event for event in await stage.system.events() if event["event_type"] == "run_enqueued"]
    children = [event["task_id"] for event in enqueued if event["task_id"] != task_id]
    assert len(children) == 2
    await stage.system.start(child, quick(batch_size=1))
    under_way = await stage.provider.called()

    async def children_finish() -> None:
        under_way.answer("done")
        (await stage.provider.called()).answer("done")

    return Situation(
        task_id, "pending_child_tasks", children_finish, ["user: hello", "assistant: fork()", "tool: ..."],
        under_way.abandoned, children,
    )  # fmt: skip


SITUATIONS = [
    queued, backing_off, between_turns, within_a_turn, in_a_model_call, in_the_last_model_call,
    in_a_streamed_model_call, in_a_tool, in_a_thread, held_by_a_dead_process, parked,
    with_children,
]  # fmt: skip


async def ended_as(system: System, provider: Provider, ending: str) -> str:
    """The id of a task that has completed, failed or been cancelled."""
    agent = Agent(name="worker", model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    request = await provider.called()
    match ending:
        case "completed":
            request.answer("done")
        case "failed":
            request.refuse(400)
        case _:
            await system.orchestrator.cancel_task(task_id)
    await system.ended(task_id)
    return task_id
