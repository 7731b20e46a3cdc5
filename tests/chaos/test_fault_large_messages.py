"""Messages of 5 MB, wherever a message can come from: each is stored once, costs the turns after it nothing, is not
published, and holds up no other task for long.

Real: actors, mailbox, Valkey. Fake: the lifeline. Scripted: the model.
"""

import asyncio
import time
from itertools import pairwise
from statistics import median
from typing import Any

import pytest

from factorial import Agent, AgentContext, deferred_result
from factorial.mailbox.transport.connection import ConnectionStats
from factorial.task import TaskStatus
from factorial.testing import Reply, ScriptedModel, call, calls, say
from tests.chaos.figures import fault, long_or_short
from tests.harness import System, quick

LARGE = "x" * 5_000_000
LARGE_TASKS = long_or_short(20, 2)
TURNS = 6
SMALL_BYTES = 40_000
"""More than a turn without anything large sends or is sent."""


async def small(agent_ctx: AgentContext) -> str:
    """Give little."""
    return "little"


async def large(agent_ctx: AgentContext) -> str:
    """Give much."""
    return LARGE


@deferred_result(timeout=300)
async def ask(agent_ctx: AgentContext) -> None:
    """Ask somebody outside."""


def script(messages: Any) -> Reply:
    """Something large in the first turn, in the way that the query says, and then small things."""
    answers = sum(message["role"] == "assistant" for message in messages)
    query = messages[0]["content"]
    if query == "small" or answers >= TURNS:
        return say("done")
    if answers == 0 and query == "a tool's result":
        return call("large")
    if answers == 0 and query == "a deferred result":
        return call("ask")
    return calls(say(LARGE), call("small")) if answers == 0 and query == "the model's answer" else call("small")


def new_agent(*tools: Any) -> Agent:
    return Agent(name="a", tools=[*tools, large, ask], model=ScriptedModel(script))


async def know_the_scripts(system: System) -> None:
    """A server that does not know a script yet is sent everything twice."""
    agent = new_agent(small)
    process = await system.start(agent)
    for query in ("another", "a deferred result"):
        task_id = await system.submit(agent, query)
        if query == "a deferred result":
            await system.event(task_id, "task_pending_tool_call_results", 30)
            await system.orchestrator.complete_deferred_tool(task_id, "call_0_0", "little")
        await system.ended(task_id, 30)
    await process.drain()


SOURCES = ["a tool's result", "the model's answer", "a steer", "a deferred result", "the context"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.replace(" ", "_"))
async def test_a_large_message_costs_the_turns_after_it_nothing(local: System, source: str) -> None:
    traffic: list[tuple[int, int]] = []

    async def small(agent_ctx: AgentContext) -> str:
        """Give little."""
        traffic.append((stats().bytes_out, stats().bytes_in))
        return "little"

    def stats() -> ConnectionStats:
        return process.mailbox.connection.stats

    agent = new_agent(small)
    context = AgentContext(query=source)
    if source == "the context":
        context.notes = LARGE  # type: ignore[attr-defined]
    await know_the_scripts(local)
    task_id = await local.submit(agent, context)
    if source == "a steer":
        await local.orchestrator.steer_task(task_id, [{"role": "user", "content": LARGE}])
    process = await local.start(agent, quick(heartbeat_interval=5))
    if source == "a deferred result":
        await local.event(task_id, "task_pending_tool_call_results", 30)
        assert await local.orchestrator.complete_deferred_tool(task_id, "call_0_0", LARGE)
    data = await local.ended(task_id, 60)
    assert (data["status"], data["payload"]["output"]) == ("completed", "done")
    contents = [message["content"] for message in data["payload"]["messages"]]
    assert [*contents, data["payload"].get("notes")].count(LARGE) == 1
    later = [[b - a for a, b in zip(*pair, strict=True)] for pair in pairwise(traffic[1:])]
    dearest = max(map(max, later))
    # The model's answer is sent as it came and as a message; a deferred result comes as a text and as data.
    times = 2 if source in ("the model's answer", "a deferred result") else 1
    assert max(stats().bytes_out, stats().bytes_in) < (times + 0.1) * len(LARGE)
    events = await local.execute("XRANGE", (await local.mailbox()).keys.events("owner"), "-", "+")
    largest = max(len(parts[1]) for _, parts in events)
    assert dearest < SMALL_BYTES and largest < SMALL_BYTES
    fault(
        f"5 MB in {source}", MB_sent=f"{stats().bytes_out / 1e6:.1f}", MB_received=f"{stats().bytes_in / 1e6:.1f}",
        dearest_later_turn=f"{dearest} bytes", largest_event=f"{largest} bytes",
    )  # fmt: skip


async def test_large_messages_hold_up_nobody_for_long(local: System) -> None:
    agent = new_agent(small)
    await local.start(agent, quick(batch_size=50))

    async def seconds() -> float:
        began = time.monotonic()
        await local.ended(await local.submit(agent, "small"), 60)
        return time.monotonic() - began

    alone = [await seconds() for _ in range(20)]
    crowd = [await local.submit(agent, "a tool's result") for _ in range(LARGE_TASKS)]
    under_way = [asyncio.create_task(seconds())]
    while {await local.orchestrator.get_task_status(task_id) for task_id in crowd} != {TaskStatus.COMPLETED}:
        under_way.append(asyncio.create_task(seconds()))
        await asyncio.sleep(0.02)
    beside = await asyncio.gather(*under_way)
    fault(
        f"{LARGE_TASKS} tasks with 5 MB, and small ones beside", small_ones=len(beside),
        alone_p50=f"{median(alone) * 1000:.0f} ms", beside_p50=f"{median(beside) * 1000:.0f} ms",
        beside_longest=f"{max(beside) * 1000:.0f} ms",
    )  # fmt: skip
    assert max(beside) < 10, "seconds: on a machine that does nothing else, it is one"
