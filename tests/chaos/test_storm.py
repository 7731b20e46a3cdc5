"""Many tasks in flight, while their processes are killed, or replaced, one after the other.

Real: supervisor, worker processes, Valkey, signals. Scripted: the model. The witness's file tells what was executed.
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from typing import Any

import psutil

from factorial import Task
from tests.chaos.agents import WorkContext
from tests.chaos.system import System, check_result, show
from tests.support import wait_until

TASKS, TURNS, PROCESSES = 200, 3, 4
KILLS, PAUSE = 50, 0.2


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def begin(system: System, *, pace: float) -> "list[Task[WorkContext]]":
    """Start four processes, and have 200 tasks of three turns under way: two with two tools each, and an answer."""
    system.configure(processes=PROCESSES, workers=4, batch_size=20, supervisor="intensity = 1000\nmax_backoff = 0.5")
    await system.start()
    work = {"turns": TURNS - 1, "model_seconds": pace, "tool_seconds": pace}
    return list(await asyncio.gather(*(system.enqueue(**work) for _ in range(TASKS))))


async def test_fifty_kills_under_load_lose_nothing(system: System) -> None:
    tasks = await begin(system, pace=0.3)
    await wait_until(lambda: len(system.witness()) >= TASKS, message="all tasks under way")
    chance = random.Random(7)
    killed_at: dict[int, float] = {}
    idle = 0
    began = time.time()
    for number in range(KILLS):
        await asyncio.sleep(max(0.0, began + number * PAUSE - time.time()))
        pid = chance.choice([process.pid for process in workers(system) if process.pid not in killed_at])
        idle += f"(pid {pid}) is ready" not in system.log.read_text()
        killed_at[pid] = time.time()
        os.kill(pid, signal.SIGKILL)
    lasted = time.time() - began
    under_way = (await system.statuses(tasks))["completed"]
    data = await system.all_end(tasks, 120)
    lines = system.witness()
    executed = Counter(line["what"] for line in lines if line["edge"] == "begin")
    recoveries = recovery_times(lines, killed_at)
    in_flight = steps_in_flight(lines, killed_at)
    excess = {what: executed[what] - count for what, count in needed().items()}
    show(
        f"{KILLS} x SIGKILL, one every {PAUSE} s, {TASKS} tasks of {TURNS} turns over {PROCESSES} processes",
        kills=f"{len(killed_at)} in {lasted:.1f} s, {idle} of them of processes that were just starting",
        completed_when_the_kills_were_over=under_way,
        ends=dict(Counter(each["status"] for each in data)),
        retries=sum(each["retries"] for each in data),
        pickups=f"{sum(each['pickups'] for each in data)}, at most {max(each['pickups'] for each in data)} of one task",
        calls_in_excess=f"{excess}; in flight at the kills: {dict(in_flight)}",
        seconds_until_a_killed_task_went_on=f"p50 {quantile(recoveries, 0.5):.2f}, "
        f"p99 {quantile(recoveries, 0.99):.2f}, longest {max(recoveries):.2f} (of {len(recoveries)})",
    )
    assert lasted < KILLS * PAUSE + 2
    assert under_way < TASKS  # the kills met work
    for each in data:
        check_result(each, turns=TURNS - 1)
        assert each["retries"] == 0
    for what, more in excess.items():
        assert 0 <= more <= in_flight[what], what
    assert await system.stop() == 0


async def test_a_rolling_restart_under_load_repeats_nothing(system: System) -> None:
    tasks = await begin(system, pace=1.2)
    await wait_until(lambda: len(system.witness()) >= TASKS, message="all tasks under way")
    before = {process.pid for process in workers(system)}
    began = time.monotonic()
    system.process.send_signal(signal.SIGHUP)
    await system.logs("system: reloaded: ", timeout=60)
    lasted = time.monotonic() - began
    unfinished = TASKS - (await system.statuses(tasks))["completed"]
    after = {process.pid for process in workers(system)}
    data = await system.all_end(tasks)
    executed = Counter(line["what"] for line in system.witness() if line["edge"] == "begin")
    handed_over = sum(each["pickups"] - 1 for each in data)
    show(
        f"SIGHUP: a rolling restart of {PROCESSES} processes, {TASKS} tasks of {TURNS} turns under way",
        seconds=f"{lasted:.1f}",
        tasks_handed_over=handed_over,
        unfinished_at_its_end=unfinished,
        ends=dict(Counter(each["status"] for each in data)),
        retries=sum(each["retries"] for each in data),
        calls={what: f"{executed[what]} executed, {count} needed" for what, count in needed().items()},
    )
    assert not before & after
    assert len(after) == PROCESSES
    assert handed_over > 0
    for each in data:
        check_result(each, turns=TURNS - 1)
        assert each["retries"] == 0
    assert executed == needed()
    assert system.log.read_text().count("abnormal") == 0
    assert await system.stop() == 0


async def test_a_stop_in_the_middle_of_long_model_calls_ends_within_the_grace(system: System) -> None:
    """500 tasks, each in the model call of its second turn, which takes 30 s: the first turn is not repeated."""
    grace = 8.0
    count = 500
    system.configure(processes=2, workers=10, batch_size=25, grace=grace)
    await system.start()
    work = {"turns": 2, "model_seconds": 0.01, "tool_seconds": 0.01, "long_turn": 1}
    tasks = list(await asyncio.gather(*(system.enqueue(**work) for _ in range(count))))

    def calling() -> int:
        lines = system.witness()
        return sum(line["what"] == "model" and line["turn"] == 1 and line["edge"] == "begin" for line in lines)

    await wait_until(lambda: calling() == count, 30, "all in their long call")
    began = time.monotonic()
    exitcode = await system.stop()
    took = time.monotonic() - began
    statuses = await system.statuses(tasks)
    await system.start(CHAOS_HASTE="1")
    data = await system.all_end(tasks)
    begun = Counter((line["what"], line["turn"]) for line in system.witness() if line["edge"] == "begin")
    show(
        f"SIGTERM, {count} tasks in model calls of 30 s, grace {grace:g} s",
        seconds=f"{took:.2f}, exit code {exitcode}",
        tasks_then=dict(statuses),
        after_the_next_start=dict(Counter(each["status"] for each in data)),
        retries=sum(each["retries"] for each in data),
        model_calls_of_the_finished_turn=f"{begun['model', 0]} executed, {count} needed",
        model_calls_of_the_interrupted_turn=f"{begun['model', 1]}: each once more, from the beginning",
    )
    assert exitcode == 0
    assert took < grace
    assert statuses == {"queued": count}
    for each in data:
        check_result(each, turns=2)
        assert each["retries"] == 0
    assert begun["model", 0] == begun["quick", 0] == begun["slow", 0] == count
    assert begun["model", 1] == 2 * count
    assert await system.stop() == 0


def needed() -> Counter[str]:
    """The calls of all tasks, if nothing goes wrong."""
    return Counter(model=TASKS * TURNS, quick=TASKS * (TURNS - 1), slow=TASKS * (TURNS - 1))


def workers(system: System) -> list[psutil.Process]:
    """The worker processes that are alive."""
    children = psutil.Process(system.process.pid).children()
    return [child for child in children if any("spawn_main" in word for word in child.cmdline())]


def recovery_times(lines: list[dict[str, Any]], killed_at: dict[int, float]) -> list[float]:
    """For each task that a killed process had at hand: the seconds until it went on elsewhere."""
    latest: dict[str, dict[str, Any]] = {}
    seconds = []
    for line in lines:
        before = latest.get(line["task"])
        if before is not None and before["pid"] != line["pid"] and before["pid"] in killed_at:
            seconds.append(line["at"] - killed_at[before["pid"]])
        latest[line["task"]] = line
    return seconds


def steps_in_flight(lines: list[dict[str, Any]], killed_at: dict[int, float]) -> Counter[str]:
    """The calls that were cut off by a kill, or had ended so shortly before it that they could not be recorded."""
    open_calls: set[tuple[int, str, str, int]] = set()
    in_flight: Counter[str] = Counter()
    for line in lines:
        call = (line["pid"], line["task"], line["what"], line["turn"])
        if line["edge"] == "begin":
            open_calls.add(call)
        else:
            open_calls.remove(call)
            in_flight[line["what"]] += line["pid"] in killed_at and killed_at[line["pid"]] - line["at"] < 0.25
    in_flight.update(what for pid, _, what, _ in open_calls if pid in killed_at)
    return in_flight
