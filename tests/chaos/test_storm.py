"""Many tasks in flight, while their processes are killed, or replaced, one after the other.

Real: supervisor, worker processes, Valkey, signals. Scripted: the model. The witness's file tells what was executed.
"""

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path

import psutil

from factorial import Task
from tests.chaos.agents import WorkContext
from tests.chaos.figures import fault
from tests.chaos.storm import Goals, Storm, lines
from tests.chaos.storm_check import quantile
from tests.chaos.system import System, check_result, show
from tests.support import wait_until

TASKS, TURNS, PROCESSES = 200, 3, 4


async def begin(system: System, *, pace: float) -> "list[Task[WorkContext]]":
    """Start four processes, and have 200 tasks of three turns under way: two with two tools each, and an answer."""
    system.configure(processes=PROCESSES, workers=4, batch_size=20, supervisor="intensity = 1000\nmax_backoff = 0.5")
    await system.start()
    work = {"turns": TURNS - 1, "model_seconds": pace, "tool_seconds": pace}
    return list(await asyncio.gather(*(system.enqueue(**work) for _ in range(TASKS))))


async def test_a_storm_of_kills_does_no_harm(tmp_path: Path, redis_url: str, namespace: str) -> None:
    """A short one of those of `make chaos`, with as much of everything in a shorter time."""
    storm = Storm(tmp_path, redis_url, namespace, Goals(seconds=8, tasks=800, kills=8, patience=60))
    await storm.blow()
    report = storm.report()
    print("", *lines(report), sep="\n")
    killed = storm.figures.recoveries["killed"]
    fault(
        "SIGKILL time and again, tasks of all kinds",
        kills=storm.harm.kills,
        tasks=sum(storm.figures.ends.values()),
        taken_back=storm.figures.taken_back,
        harm=storm.figures.harm.total(),
        repeated_steps_per_kill=report["steps"]["repeated per kill"],
        recovery=f"p50 {quantile(killed, 0.5):.2f} s",
    )
    assert storm.failures == []
    assert storm.figures.taken_back > 0  # the kills met work


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
