"""What is stored of a run was damaged by hand: the run fails with an error that names it, or its entry is skipped.
Nothing else suffers: no process dies, none is kept busy by it, and the other tasks complete.

Real: actors, mailbox, Valkey. Fake: the lifeline, and the model, which is scripted.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from factorial import Agent, AgentContext, deferred_result
from factorial.mailbox.keys import KINDS
from factorial.testing import ScriptedModel, call, calls, say
from tests.chaos.figures import fault, long_or_short
from tests.harness import System
from tests.support import wait_until

NEIGHBOURS = long_or_short(100, 8)
DAMAGED = "the owner of the damaged run"


@deferred_result(timeout=300)
async def ask(agent_ctx: AgentContext) -> None:
    """Ask somebody outside."""


async def look(agent_ctx: AgentContext) -> str:
    """Look."""
    return "seen"


def script(messages: Any) -> Any:
    """A turn with two tools, for one of which somebody is asked, and then the answer."""
    if any(message["role"] == "assistant" for message in messages):
        return say("done")
    return calls(call("look"), call("ask")) if messages[0]["content"] == "ask" else call("look")


def new_agent() -> Agent:
    return Agent(name="a", tools=[look, ask], model=ScriptedModel(script))


@dataclass(frozen=True)
class Damage:
    """A run that is queued, was left in its turn, or waits for an answer, and the commands that damage what is stored
    of it, each with the kind of key as its second word. `error`: what the run's error has to say; if there is none,
    there is not enough left of the run for one, and it is skipped."""

    name: str
    state: str
    commands: tuple[tuple[str, ...], ...]
    error: str = ""


def other_type(kind: str) -> tuple[tuple[str, ...], ...]:
    return (("DEL", kind), ("SET", kind, "text"))


DAMAGES = [
    Damage(
        "a context field is no JSON", "queued", (("HSET", "fields", "query", "{broken"),), "does not fit AgentContext"
    ),
    Damage("the context is gone", "queued", (("DEL", "fields"),), "does not fit AgentContext: query"),
    Damage("the context is of another type", "queued", other_type("fields"), "WRONGTYPE"),
    Damage("a message is no JSON", "queued", (("RPUSH", "conversation", "{broken"),), "does not fit AgentContext"),
    Damage(
        "a message is no object", "queued", (("RPUSH", "conversation", "7"),), "does not fit AgentContext: messages.1"
    ),
    Damage("the conversation is of another type", "queued", other_type("conversation"), "WRONGTYPE"),
    Damage("the mail is no JSON", "queued", (("RPUSH", "mail", "{broken"),), "does not fit AgentContext"),
    Damage("the mail is of another type", "queued", other_type("mail"), "WRONGTYPE"),
    Damage("the run is of another type", "queued", other_type("run")),
    Damage("the run is gone", "queued", (("DEL", "run"),)),
    Damage("the run has no agent", "queued", (("HDEL", "run", "agent"),)),
    Damage("the run has no owner", "queued", (("HDEL", "run", "owner"),)),
    Damage("the run has no status", "queued", (("HDEL", "run", "status"),)),
    Damage("the run has an unknown status", "queued", (("HSET", "run", "status", "flying"),)),
    Damage("a journaled answer is no JSON", "left", (("HSET", "journal", "completion", "{broken"),), "'completion'"),
    Damage("a journaled answer is none", "left", (("HSET", "journal", "completion", "7"),), "'completion'"),
    Damage(
        "a journaled result is no JSON", "left", (("HSET", "journal", "tool:call_0_0", "{broken"),), "'tool:call_0_0'"
    ),
    Damage("a journaled result is none", "left", (("HSET", "journal", "tool:call_0_0", "7"),), "'tool:call_0_0'"),
    Damage("the journal is of another type", "left", other_type("journal"), "WRONGTYPE"),
    Damage(
        "an awaited result is no JSON", "answered", (("HSET", "awaits", "tool:call_0_1", "!{broken"),), "was parked for"
    ),
    Damage("the plan is no JSON", "answered", (("HSET", "awaits", "plan", "{broken"),), "was parked for"),
    Damage("what was awaited is of another type", "answered", other_type("awaits"), "WRONGTYPE"),
    Damage("what is awaited is of another type", "waiting", other_type("awaits")),
]


async def prepare(system: System, agent: Agent, state: str) -> str:
    """A run in this state, that no process holds. Its owner has no other."""
    task_id = await system.submit(agent, "look" if state in ("queued", "left") else "ask", owner_id=DAMAGED)
    if state == "left":
        await system.execute("HSET", (await system.mailbox()).keys.run(task_id), "pickups", 1, "started_at", 1)
    elif state != "queued":
        process = await system.start(agent)
        await system.reaches(task_id, "pending_tool_results")
        await process.drain()
    if state == "answered":
        assert await system.orchestrator.complete_deferred_tool(task_id, "call_0_1", "yes")
    return task_id


async def is_gone(system: System, key: str) -> bool:
    return not await system.execute("EXISTS", key)


async def scripts_called(system: System) -> int:
    stats = (await system.execute("INFO", "commandstats")).decode()
    return int(stats.partition("cmdstat_evalsha:calls=")[2].partition(",")[0])


async def sweep(system: System, task_id: str) -> None:
    """Take away by hand what nobody can work with."""
    prefix = (await system.mailbox()).keys.prefix
    await system.execute(
        "DEL",
        *(f"{prefix}{kind}:{task_id}" for kind, about in KINDS.items() if about.is_of_run),
        f"{prefix}owner:{DAMAGED}",
    )
    await system.execute("SREM", f"{prefix}parked:a", task_id)
    await system.execute("ZREM", f"{prefix}due:a", task_id)


async def complete(system: System, tasks: list[str]) -> None:
    for task_id in tasks:
        data = await system.ended(task_id)
        assert (data["status"], data["payload"]["output"], data["retries"]) == ("completed", "done", 0)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name.replace(" ", "_"))
async def test_a_damaged_run_harms_nobody_else(local: System, damage: Damage) -> None:
    agent = new_agent()
    neighbours = [await local.submit(agent, "look") for _ in range(NEIGHBOURS // 2)]
    damaged = await prepare(local, agent, damage.state)
    prefix = (await local.mailbox()).keys.prefix
    for verb, kind, *rest in damage.commands:
        await local.execute(verb, f"{prefix}{kind}:{damaged}", *rest)
    neighbours += [await local.submit(agent, "look") for _ in range(NEIGHBOURS // 2)]
    process = await local.start(agent)  # takes up the damaged run together with some of its neighbours
    await complete(local, neighbours)
    if damage.error:
        [failed] = await local.updates(lambda heard: True, owner_id=DAMAGED, event_types=["run_failed"], after="0")
        assert (failed["task_id"], await local.orchestrator.get_task_status(damaged)) == (damaged, "failed")
        assert damage.error in failed["error"] and damaged in failed["error"]
    before = await scripts_called(local)
    await asyncio.sleep(0.1)
    calls = await scripts_called(local) - before
    assert calls < 50, "two rounds of maintenance, and nobody else is busy"
    await complete(local, [await local.submit(agent, "look")])
    assert process.life is not None and not process.life.done()
    if not damage.error:
        await sweep(local, damaged)
    fault(f"damaged: {damage.name}", ends="failed" if damage.error else "skipped", neighbours_completed=NEIGHBOURS + 1)


STRAYS = [
    ("RPUSH", "ready:a", "nobody"),
    ("RPUSH", "suspects:a", "nobody"),
    ("ZADD", "due:a", "1", "nobody"),
    ("SADD", "parked:a", "nobody"),
    ("RPUSH", "doomed", "nobody"),
    ("RPUSH", "signals:p1", "what?", "cancel nobody", "cancel"),
    ("ZADD", "processes", "0", "nobody"),
    ("SADD", "held:nobody", "nothing"),
    ("ZADD", "ended:a:completed", "1", "nobody"),
]
"""Entries that name a run or a process which does not exist."""


async def test_entries_that_name_nothing_are_passed_over(local: System) -> None:
    agent, prefix = new_agent(), (await local.mailbox()).keys.prefix
    for verb, key, *rest in STRAYS:
        await local.execute(verb, prefix + key, *rest)
    process = await local.start(agent)
    await complete(local, [await local.submit(agent, "look") for _ in range(NEIGHBOURS)])
    assert process.life is not None and not process.life.done()
    await wait_until(lambda: is_gone(local, prefix + "held:nobody"), message="the process that never was to be buried")
    await local.execute("DEL", prefix + "parked:a")
    fault("stray entries in queues and registries", entries=len(STRAYS), tasks_completed=NEIGHBOURS)


async def test_events_that_cannot_be_read_are_passed_over(local: System) -> None:
    """Stored ones and live ones: subscribers hear all the others."""
    agent, keys = new_agent(), (await local.mailbox()).keys
    rubbish = ["{broken", "7", "{}", "\xff"]
    task_id = await local.submit(agent, "look")
    for text in rubbish:
        await local.execute("XADD", keys.events("owner"), "*", "e", text)
    subscription = asyncio.create_task(
        local.updates(lambda heard: heard[-1]["event_type"] == "run_completed", task_ids=[task_id])
    )
    await wait_until(lambda: local.execute("PUBSUB", "CHANNELS", keys.channel("owner")))
    for text in rubbish:
        await local.execute("PUBLISH", keys.channel("owner"), text)
    await local.start(agent)
    heard = [event["id"] for event in await subscription]
    await local.execute("DEL", keys.events("owner"))
    assert len(heard) == len(set(heard)) > 5
    fault("events that cannot be read", rubbish=2 * len(rubbish), events_heard=len(heard))
