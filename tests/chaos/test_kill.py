"""SIGKILL of a worker process in the middle of a task of five turns with two tools each.

Real: supervisor, worker processes, Valkey, signals. Scripted: the model. The witness's file tells what was executed.
"""

import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

from factorial import Task
from tests.chaos.agents import WorkContext
from tests.chaos.figures import fault
from tests.chaos.system import System, check_events, check_result, show

Moment = Callable[[System, "Task[WorkContext]"], Awaitable[dict[str, Any]]]

# In which call the process is killed, how long calls take, what the witness saw last, and the most of each kind of
# call that may be executed twice: what was in flight.
MOMENTS: list[tuple[str, dict[str, float], dict[str, Any], dict[str, int]]] = [
    ("in a model call", {"model_seconds": 0.3}, {"what": "model", "turn": 2, "edge": "begin"}, {"model": 1}),
    ("as a model call ends", {}, {"what": "model", "turn": 2, "edge": "end"}, {"model": 1, "quick": 1, "slow": 1}),
    ("in a tool", {"tool_seconds": 0.3}, {"what": "slow", "turn": 2, "edge": "begin"}, {"slow": 1, "quick": 1}),
    ("as the last tool ends", {}, {"what": "slow", "turn": 2, "edge": "end"}, {"slow": 1, "model": 1}),
    ("between two turns", {"model_seconds": 0.1}, {"what": "model", "turn": 3, "edge": "begin"}, {"model": 1}),
]


async def test_a_killed_process_costs_at_most_the_step_in_flight(system: System) -> None:
    system.configure()
    await system.start()
    recoveries = []
    for moment, pace, sight, in_flight in MOMENTS:
        await system.all_ready()
        task = await system.enqueue(**pace)
        seen = await system.sees(task, **sight)
        os.kill(seen["pid"], signal.SIGKILL)
        killed_at = time.time()
        data = await system.finished(task)
        goes_on = next(line for line in system.lines(task) if line["process"] != seen["process"])
        events = await system.events(task)
        seconds = goes_on["at"] - killed_at
        recoveries.append(seconds)
        executed = system.executed(task)
        excess = {"model": executed["model"] - 6, "quick": executed["quick"] - 5, "slow": executed["slow"] - 5}
        show(
            f"SIGKILL {moment} (turn {seen['turn']})",
            killed=f"{seen['process']} (pid {seen['pid']})",
            goes_on=f"in {goes_on['process']}, with {goes_on['what']} of turn {goes_on['turn']}, "
            f"after {seconds * 1000:.0f} ms",
            model_calls=f"6 needed, {executed['model']} executed",
            tool_calls=f"10 needed, {executed['quick'] + executed['slow']} executed",
            ends=f"{data['status']}, pickups {data['pickups']}, retries {data['retries']}, events {len(events)}",
        )
        check_result(data)
        check_events(events)
        assert 0 <= seconds < 5.0  # its lease was not waited for
        assert all(0 <= excess[what] <= in_flight.get(what, 0) for what in excess), excess
        assert sum(excess.values()) <= 1 or moment in ("as a model call ends", "in a tool")
        assert data["retries"] == 0
        assert data["pickups"] == 2
        fault(
            f"SIGKILL {moment}, under a supervisor", repeated_steps=sum(excess.values()),
            recovery=f"{seconds * 1000:.0f} ms",
        )  # fmt: skip
    assert min(recoveries) < 0.5  # the quickest: the machine may have been busy with something else
    assert await system.stop() == 0


async def test_all_tasks_of_a_killed_process_go_on_at_once_in_the_other(system: System) -> None:
    """As far as it has free slots; for the rest, a new process comes in the place of the killed one."""
    system.configure()
    await system.start()
    tasks = [await system.enqueue(turns=2, tool_seconds=0.6) for _ in range(6)]
    seen = [await system.sees(task, what="slow", edge="begin") for task in tasks]
    victim = seen[0]["process"]
    [other] = (await system.held()).keys() - {victim}
    held = [task for task, line in zip(tasks, seen, strict=True) if line["process"] == victim]
    free = 6 - (len(tasks) - len(held))
    os.kill(seen[0]["pid"], signal.SIGKILL)
    killed_at = time.time()
    data = [await system.finished(task) for task in tasks]
    goes_on = [next(line for line in system.lines(task) if line["process"] != victim) for task in held]
    show(
        "SIGKILL of a process with several tasks",
        held=len(held),
        free_slots_elsewhere=free,
        milliseconds_until_each_goes_on=sorted(round((line["at"] - killed_at) * 1000) for line in goes_on),
    )
    for each in data:
        check_result(each, turns=2)
    await system.all_ready()
    *_, until_its_successor_came, _ = system.log.read_text().split(" is ready")
    resumed = [task for task in held if f"{other} factorial.task: task {task.id} " in until_its_successor_came]
    assert len(resumed) >= min(free, len(held)) > 0
    assert await system.stop() == 0
