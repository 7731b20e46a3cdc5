"""Tasks that end the process which executes them, each time and in many ways, among healthy ones.

Real: worker processes, Valkey, signals; in the long run the supervisor, too, which sees to blocked event loops and to
memory (the short one: nursery.py). Scripted: the model.
"""

import time
from collections import Counter

from tests.chaos.figures import LONG, fault, long_or_short
from tests.chaos.system import System
from tests.redis.doctor import assert_invariants

DEADLY = long_or_short(["be killed", "crash", "exit", "abort", "block", "hoard"], ["exit", "abort"])
FAILING = ["recurse", "exhaust", "leave", "interrupt", "close"]
"""These raise what a process survives: the model is told of it."""
HEALTHY = long_or_short(300, 30)


async def test_poison_ends_in_a_crash_loop_and_healthy_tasks_complete(system: System) -> None:
    health = "health = { blocked_after = 2.0, hard_memory_mb = 500 }"
    patient = "intensity = 1000\nmax_backoff = 0.5"
    system.configure(agent="harm", processes=3, workers=2, batch_size=10, supervisor=patient, more=health)
    await system.start(*() if LONG else ("-m", "tests.chaos.nursery", str(system.config)))
    began = time.monotonic()
    healthy = [await system.enqueue_harm(seconds=0.2) for _ in range(HEALTHY // 2)]
    poison = {harm: await system.enqueue_harm(harm=harm, seconds=0.1) for harm in DEADLY}
    failing = {harm: await system.enqueue_harm(harm=harm, seconds=0.1) for harm in FAILING}
    healthy += [await system.enqueue_harm(seconds=0.2) for _ in range(HEALTHY - HEALTHY // 2)]
    data = await system.all_end(healthy, 240)
    seconds = time.monotonic() - began
    ends = {harm: await system.finished(task, 240) for harm, task in poison.items()}
    survived = {harm: await system.finished(task, 60) for harm, task in failing.items()}
    assert {each["status"] for each in survived.values()} == {"completed"}
    processes = {harm: len({line["pid"] for line in system.lines(task)}) for harm, task in poison.items()}
    assert Counter(each["status"] for each in data) == {"completed": HEALTHY}
    assert sum(each["retries"] for each in data) == 0
    for harm, each in ends.items():
        assert each["status"] == "failed" and each["error"].startswith("crash_loop: "), f"{harm}: {each}"
        assert 3 <= processes[harm] <= 12
    mailbox = await system.orchestrator._namespace()
    await assert_invariants(mailbox.connection, system.namespace)
    fault(
        "poison among healthy tasks", kinds=len(poison), ended_by_crash_loop=len(ends),
        processes_lost=sum(processes.values()), healthy=HEALTHY, completed=len(data),
        their_pickups=sum(each["pickups"] for each in data), seconds=f"{seconds:.1f}",
        raised_and_survived=len(survived),
    )  # fmt: skip
    assert await system.stop() == 0
