"""SIGKILL of the process that executes a task, exactly at each point where something was just done, or is just to be.

Real: worker processes (see nursery.py), Valkey, signals. Scripted: the model. A process has one task at a time, so that
each kill hits that one alone; the witness's file tells what was executed.
"""

from collections import Counter, defaultdict
from statistics import median
from typing import Any

from factorial import Task
from tests.chaos.agents import WorkContext
from tests.chaos.figures import fault, long_or_short
from tests.chaos.points import (
    ASKED,
    BETWEEN,
    CLAIMED,
    COMMITTED,
    COMMITTING,
    KEPT,
    WARRANTS,
    of_kept_turns,
    strokes,
    struck,
    warrant,
)
from tests.chaos.system import OWNER, System, check_events, check_result
from tests.redis.doctor import assert_invariants

KILLS = long_or_short(50, 2)
"""At each point. Every other one meets a task of a single turn, where such a turn has that point."""

# What may be executed a second time: the step that was in flight, and nothing that was kept.
IN_FLIGHT: dict[str, set[str]] = {
    CLAIMED: set(),
    ASKED: {"model"},
    KEPT: set(),
    BETWEEN: {"slow"},
    COMMITTING: {"model", "slow"},
    COMMITTED: set(),
}


async def test_a_kill_at_any_point_costs_at_most_the_step_in_flight(system: System) -> None:
    system.configure(agent="points:struck", processes=4, workers=1)
    warrants = system.directory / "warrants"
    await system.start("-m", "tests.chaos.nursery", str(system.config), **{WARRANTS: str(warrants)})
    tasks: list[tuple[str, int, Task[WorkContext]]] = []
    for number in range(KILLS):
        for point in IN_FLIGHT:
            turns = 0 if number % 2 and point not in (KEPT, BETWEEN) else 2
            turn = 0 if point == CLAIMED else min(turns, 1)  # claimed once, and then held from turn to turn
            context = WorkContext(query=str(turns), turns=turns, model_seconds=0.02, tool_seconds=0.1)
            task = struck.create_task(OWNER, context)
            warrant(warrants, task.id, point, turn)
            tasks.append((point, turns, await system.orchestrator.enqueue_task(struck, task)))
    data = await system.all_end([task for _, _, task in tasks], 300)
    seen: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in system.witness():
        seen[line["task"]].append(line)
    struck_at = {stroke.task_id: stroke for stroke in strokes(warrants)}
    repeated: Counter[str] = Counter()
    completed: Counter[str] = Counter()
    seconds: dict[str, list[float]] = {point: [] for point in IN_FLIGHT}
    for (point, turns, task), each in zip(tasks, data, strict=True):
        check_result(each, turns)
        events = await system.events(task)
        check_events(of_kept_turns(events) if point == COMMITTING else events, turns)
        assert each["retries"] == 0
        stroke = struck_at[task.id]  # the kill did happen, exactly there
        executed = Counter(line["what"] for line in seen[task.id] if line["edge"] == "begin")
        excess = executed - Counter(model=turns + 1, quick=turns, slow=turns)
        assert excess.total() <= 1 and set(excess) <= IN_FLIGHT[point], f"killed {point}: {excess}"
        repeated[point] += excess.total()
        completed[point] += each["status"] == "completed"
        after = [line["at"] for line in seen[task.id] if line["pid"] != stroke.pid and line["at"] > stroke.at]
        seconds[point] += [at - stroke.at for at in after[:1]]
        assert each["pickups"] == 1 + bool(after)  # nobody had to take it up again after its last commit
    mailbox = await system.orchestrator._namespace()
    await assert_invariants(mailbox.connection, system.namespace)
    assert repeated[ASKED] == KILLS, "an answer that nobody has kept is asked for again"
    for point, waited in seconds.items():
        fault(
            f"SIGKILL {point}", kills=KILLS, lost=KILLS - completed[point], repeated_steps=repeated[point],
            recovery_p50=f"{median(waited) * 1000:.0f} ms",
        )  # fmt: skip
    assert await system.stop() == 0
