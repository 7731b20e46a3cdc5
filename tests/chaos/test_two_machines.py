"""Two supervisors on one Redis, as on two machines: they share the work, and one takes over when the other is lost.

Real: supervisors, worker processes, Valkey, signals, the command. Scripted: the model. Both run on this machine, each
in a session of its own, all processes of which are killed at once.
"""

import asyncio
import time
from collections import Counter

from tests.chaos.figures import fault
from tests.chaos.system import System, SystemAt, check_result, show
from tests.support import PATIENCE, wait_until

COUNT = 12
LEASE = 1.0


async def test_two_supervisors_share_the_work_and_survive_each_other(
    system: System, system_at: SystemAt, redis_url: str
) -> None:
    other = system_at(redis_url)
    other.diary = system.diary
    system.configure(heartbeat=LEASE / 2)
    other.configure(heartbeat=LEASE / 2)
    await system.start()
    await other.start()
    # As many as fit into the slots of one of them.
    tasks = [await system.enqueue(turns=2, model_seconds=0.8, tool_seconds=0.8) for _ in range(COUNT)]
    await wait_until(lambda: len({line["task"] for line in system.witness()}) == COUNT, message="all under way")
    held = await system.held()
    mine = {name for name in held if f"{name} (pid" in system.log.read_text()}
    lost = sum(held[name] for name in held.keys() - mine)
    assert 0 < lost < COUNT
    assert len(await system.supervisors()) == 2
    for process in other.members():
        process.kill()
    lost_at = time.time()
    await other.process.wait()
    data = await system.all_end(tasks)
    orphaned = {line["task"] for line in system.witness() if line["process"] in held.keys() - mine}
    went_on = {
        task: next(
            line["at"] for line in system.witness()
            if line["task"] == task and line["process"] in mine and line["at"] > lost_at
        ) - lost_at
        for task in orphaned
    }  # fmt: skip
    await wait_until(lambda: is_given_up(system), message="the silent supervisor to be held for lost")
    _, status = await system.command("status")
    executed = Counter(line["what"] for line in system.witness() if line["edge"] == "begin")
    show(
        f"two supervisors, one is lost with all its processes (lease {LEASE:g} s)",
        tasks_it_held=len(orphaned),
        seconds_until_the_first_and_the_last_went_on=f"{min(went_on.values()):.1f}, {max(went_on.values()):.1f}",
        ends=dict(Counter(each["status"] for each in data)),
        retries=sum(each["retries"] for each in data),
        calls_in_excess=sum(executed.values()) - COUNT * 7,
        status="\n" + status,
    )
    for each in data:
        check_result(each, turns=2)
        assert each["retries"] == 0
    assert len(orphaned) == lost
    # A lease, as long again in which a living process would register, and a round of maintenance.
    assert LEASE < min(went_on.values()) < 2 * LEASE + 10
    assert 0 <= sum(executed.values()) - COUNT * 7 <= 2 * lost
    assert "LOST" in status
    fault(
        "one of two machines is lost", tasks_it_held=lost,
        lost=COUNT - sum(each["status"] == "completed" for each in data),
        recovery=f"{min(went_on.values()):.1f} to {max(went_on.values()):.1f} s (lease {LEASE:g} s)",
    )  # fmt: skip
    code, out = await system.command("stop")
    assert code == 0, out
    assert await asyncio.wait_for(system.process.wait(), PATIENCE) == 0


async def is_given_up(system: System) -> bool:
    return any(each["lost"] for each in await system.supervisors())
