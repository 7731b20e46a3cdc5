"""Processes that are stopped (SIGSTOP) beyond their lease, exactly at a point, and go on when others have their tasks.

Real: worker processes (see nursery.py), Valkey, signals. Scripted: the model. A process has one task at a time.
"""

import os
import signal
import time
from collections import Counter
from typing import Any

from factorial import Task
from tests.chaos.agents import WorkContext
from tests.chaos.figures import fault, long_or_short
from tests.chaos.points import (
    ACCEPTED,
    ASKING,
    COMMITTING,
    IN_TOOL,
    WARRANTS,
    Stroke,
    of_kept_turns,
    strokes,
    struck,
    warrant,
)
from tests.chaos.system import OWNER, System, check_events, check_result
from tests.redis.doctor import assert_invariants
from tests.support import wait_until

WAVES = long_or_short(17, 2)
TURNS = 2
# Where it is stopped, and what was in flight then: both tools of a turn are executed at the same time.
POINTS = {ASKING: {"model"}, IN_TOOL: {"quick", "slow"}, COMMITTING: {"model", "slow"}}


async def taken_over(system: System, task: Task[WorkContext]) -> bool:
    data = await system.orchestrator.get_task_data(task.id)
    return data is not None and data["pickups"] == 2


def told_late(events: list[dict[str, Any]]) -> int:
    """The events that the first process told of after the second had told of something."""
    told_by = [process for event in events if (process := (event["metadata"] or {}).get("process"))]
    first, second = dict.fromkeys(told_by)
    return told_by[told_by.index(second) :].count(first)


async def test_a_zombie_commits_nothing_tells_nothing_and_its_results_do_not_count(system: System) -> None:
    # Two more processes than there are zombies at a time.
    system.configure(agent="points:struck", processes=len(POINTS) + 2, workers=1, heartbeat=0.75)
    warrants = system.directory / "warrants"
    await system.start("-m", "tests.chaos.nursery", str(system.config), **{WARRANTS: str(warrants)})
    zombies: list[tuple[str, Task[WorkContext], Stroke, float]] = []
    for wave in range(WAVES):
        tasks: dict[str, Task[WorkContext]] = {}
        for point in POINTS:
            context = WorkContext(query=str(TURNS), turns=TURNS, model_seconds=0.02, tool_seconds=0.05)
            task = struck.create_task(OWNER, context)
            warrant(warrants, task.id, point, wave % TURNS, signal.SIGSTOP)
            tasks[point] = await system.orchestrator.enqueue_task(struck, task)
        # Every other time the zombies go on while others are at work, and else when the tasks have long ended.
        if wave % 2:
            for task in tasks.values():
                await wait_until(lambda task=task: taken_over(system, task), message="another process to have it")
        else:
            await system.all_end(list(tasks.values()), 60)
        stopped = {stroke.task_id: stroke for stroke in strokes(warrants)}
        for point, task in tasks.items():
            os.kill(stopped[task.id].pid, signal.SIGCONT)
            zombies.append((point, task, stopped[task.id], time.time()))
        for task in tasks.values():
            await system.logs(f"task {task.id} of work for {OWNER}: superseded: another process holds it now")
    data = await system.all_end([task for _, task, _, _ in zombies], 60)
    assert await system.stop() == 0
    commits = late_events = 0
    for (point, task, zombie, continued), each in zip(zombies, data, strict=True):
        accepted = system.lines(task, what=ACCEPTED)
        assert [line["turn"] for line in accepted] == [*range(TURNS + 1)]
        commits += sum(line["pid"] == zombie.pid and line["at"] > continued for line in accepted)
        check_result(each, TURNS)
        events = await system.events(task)
        late_events += told_late(events)
        check_events(of_kept_turns(events) if point == COMMITTING else events, TURNS)
        excess = system.executed(task) - Counter(model=TURNS + 1, quick=TURNS, slow=TURNS)
        assert set(excess) <= POINTS[point] and set(excess.values()) <= {1}, f"stopped {point}: {excess}"
        assert (each["retries"], each["pickups"]) == (0, 2)
    assert (commits, late_events) == (0, 0)
    mailbox = await system.orchestrator._namespace()
    await assert_invariants(mailbox.connection, system.namespace)
    fault(
        "SIGSTOP beyond the lease in a model call, in a tool, before a commit",
        zombies=len(zombies), their_commits=commits, their_late_events=late_events,
    )  # fmt: skip
