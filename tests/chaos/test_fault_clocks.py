"""Machines whose clocks are an hour off: one is ahead, one is behind.

Real: two supervisors with their worker processes, Valkey, signals. Scripted: the model. Played: the wrong clocks, by
`clock/sitecustomize.py`, in every process of the two.

Only the server's clock decides anything. That one must not jump: a lease that is over too soon costs a claim, and one
that is over too late costs waiting.
"""

import asyncio
import os
import time

import pytest

from factorial import AgentContext
from tests.chaos.figures import fault, long_or_short
from tests.chaos.system import OWNER, ROOT, System, SystemAt
from tests.chaos.timely import DEADLINE, timely
from tests.redis.doctor import assert_invariants
from tests.support import wait_until

HOUR = 3600
COUNT = long_or_short(100, 12)


@pytest.fixture
async def machines(system: System, system_at: SystemAt, redis_url: str) -> dict[int, System]:
    """Two machines that share the work, by how many seconds their clocks are off."""
    machines = {HOUR: system, -HOUR: system_at(redis_url)}
    for machine in machines.values():
        machine.diary = system.diary
        machine.configure(processes=1, heartbeat=1.0, agent="timely:timely")
    path = os.pathsep.join([str(ROOT / "tests" / "chaos" / "clock"), str(ROOT)])
    await asyncio.gather(*(one.start(PYTHONPATH=path, CHAOS_CLOCK=str(off)) for off, one in machines.items()))
    return machines


async def test_clocks_that_are_an_hour_off_change_nothing(machines: dict[int, System]) -> None:
    ahead, behind = machines.values()
    orchestrator, began = ahead.orchestrator, time.time()
    tasks = [
        await orchestrator.enqueue_task(timely, owner_id=OWNER, payload=AgentContext(query="0.2")) for _ in range(COUNT)
    ]
    data = await ahead.all_end(tasks)
    took = (await orchestrator.get_metrics(timely))["agents"]["timely"]["totals"]
    off = {line["pid"]: round((line["at"] - began) / HOUR) for line in ahead.witness()}
    # Both have a lease, and lose it when they are dead, and not before.
    tasks = [
        await orchestrator.enqueue_task(timely, owner_id=OWNER, payload=AgentContext(query="5.0")) for _ in range(12)
    ]
    await wait_until(lambda: len(ahead.witness()) > 6 * COUNT + 11, message="all under way")
    held = await ahead.held()
    for process in ahead.members():
        process.kill()
    await ahead.process.wait()
    more = await ahead.all_end(tasks)
    then = (await orchestrator.get_metrics(timely))["agents"]["timely"]["totals"]
    lost = next(count for name, count in held.items() if f"{name} (pid" in ahead.log.read_text())
    fault(
        "worker clocks an hour ahead and an hour behind",
        tasks=len(data), reclaimed=took["recovered"], retries=took["retried"],
        longest=f"{took['max_duration']['completed']:.1f} s", reclaimed_from_a_dead_machine=then["recovered"],
    )  # fmt: skip
    assert sorted(off.values()) == [-1, 1]  # both were at work
    assert {each["status"] for each in [*data, *more]} == {"completed"}
    assert {each["payload"]["output"] for each in [*data, *more]} == {"it is late"}
    assert took["recovered"] == 0
    assert took["retried"] == COUNT
    # The deadline and the pause before the second try passed as they should, by anybody's watch.
    mean, longest = took["mean_duration"]["completed"], took["max_duration"]["completed"]
    assert mean is not None and mean > DEADLINE + 0.5
    assert longest is not None and longest < 20
    assert then["recovered"] == lost > 0
    assert await behind.stop() == 0
    mailbox = await orchestrator._namespace()
    await assert_invariants(mailbox.connection, ahead.namespace, quiet=True)
