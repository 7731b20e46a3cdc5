"""Many tasks in flight, while their processes are killed, or replaced, one after the other.

Real: supervisor, worker processes, Valkey, signals. Scripted: the model. The witness's file tells what was executed.
"""

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path

from factorial import Task
from tests.chaos.agents import WorkContext
from tests.chaos.figures import fault
from tests.chaos.storm import MANY_KILLS, Goals, Storm, lines
from tests.chaos.storm_check import quantile
from tests.chaos.system import System, check_result
from tests.support import wait_until

TASKS, TURNS, PROCESSES = 200, 3, 4


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
        stopped_and_woken=storm.harm.stops,
        tasks=sum(storm.figures.ends.values()),
        taken_back=storm.figures.taken_back,
        promises_broken=storm.figures.broken.total(),
        repeated_steps_per_kill=report["steps"]["repeated per kill"],
        recovery=f"p50 {quantile(killed, 0.5):.2f} s",
    )
    assert storm.failures == []
    assert storm.figures.taken_back > 0  # the kills met work
    assert storm.harm.stops > 1


async def test_a_storm_that_met_nothing_has_failed(tmp_path: Path, redis_url: str, namespace: str) -> None:
    storm = Storm(tmp_path, redis_url, namespace, Goals(seconds=8, tasks=0, kills=MANY_KILLS))
    storm.harm.kills = MANY_KILLS
    harms, deeds = (
        ["killed", "killed with its supervisor", "stopped"],
        ["steered", "cancelled in time", "results given"],
    )
    assert [failure.partition(":")[0] for failure in storm.failures] == [*deeds, *harms]
    storm.figures.steers = storm.figures.cancels = storm.figures.answers = 1
    storm.figures.repeated_by.update(harms)
    assert storm.failures == []


async def test_a_rolling_restart_under_load_repeats_nothing(system: System) -> None:
    """200 tasks of three turns, two with two tools each, and an answer; and more, until all processes are replaced."""
    system.configure(processes=PROCESSES, workers=4, batch_size=20, supervisor="intensity = 1000\nmax_backoff = 0.5")
    await system.start()

    async def enqueue() -> Task[WorkContext]:
        return await system.enqueue(turns=TURNS - 1, model_seconds=1.2, tool_seconds=1.2)

    tasks = list(await asyncio.gather(*(enqueue() for _ in range(TASKS))))
    await wait_until(lambda: len(system.witness()) >= TASKS, message="all tasks under way")
    before = {process.pid for process in system.workers()}
    began = time.monotonic()
    system.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(240):
        while "system: reloaded: " not in system.log.read_text():
            tasks.append(await enqueue())  # each process is at work when it is replaced, however long that takes
            await asyncio.sleep(0.05)
    lasted = time.monotonic() - began
    unfinished = len(tasks) - (await system.statuses(tasks))["completed"]
    after = {process.pid for process in system.workers()}
    data = await system.all_end(tasks, 240)
    executed = Counter(line["what"] for line in system.witness() if line["edge"] == "begin")
    needed = Counter(model=TURNS, quick=TURNS - 1, slow=TURNS - 1)
    needed = Counter({what: count * len(tasks) for what, count in needed.items()})
    handed_over = sum(each["pickups"] - 1 for each in data)
    fault(
        f"SIGHUP: a rolling restart of {PROCESSES} processes at work",
        tasks=len(tasks), handed_over=handed_over,
        lost=len(tasks) - sum(each["status"] == "completed" for each in data),
        retries=sum(each["retries"] for each in data), repeated_steps=(executed - needed).total(),
        unfinished_at_its_end=unfinished, seconds=f"{lasted:.1f}",
    )  # fmt: skip
    assert not before & after
    assert len(after) == PROCESSES
    assert handed_over > 0
    for each in data:
        check_result(each, turns=TURNS - 1)
        assert each["retries"] == 0
    assert executed == needed
    assert system.log.read_text().count("abnormal") == 0
    assert await system.stop() == 0


async def test_a_stop_in_the_middle_of_long_model_calls_ends_within_the_grace(system: System) -> None:
    """500 tasks, each in the model call of its second turn, which takes 30 s: the first turn is not repeated."""
    grace = 10.0
    count = 500
    system.configure(processes=2, workers=10, batch_size=25, grace=grace)
    await system.start()
    work = {"turns": 2, "model_seconds": 0.01, "tool_seconds": 0.01, "long_turn": 1}
    tasks = list(await asyncio.gather(*(system.enqueue(**work) for _ in range(count))))

    def calling() -> int:
        lines = system.witness()
        return sum(line["what"] == "model" and line["turn"] == 1 and line["edge"] == "begin" for line in lines)

    await wait_until(lambda: calling() == count, message="all in their long call")
    began = time.monotonic()
    exitcode = await system.stop()
    took = time.monotonic() - began
    statuses = await system.statuses(tasks)
    await system.start(CHAOS_HASTE="1")
    data = await system.all_end(tasks)
    begun = Counter((line["what"], line["turn"]) for line in system.witness() if line["edge"] == "begin")
    fault(
        f"SIGTERM, {count} tasks in model calls of 30 s, grace {grace:g} s",
        seconds=f"{took:.2f}", queued_then=statuses["queued"],
        lost=count - sum(each["status"] == "completed" for each in data),
        retries=sum(each["retries"] for each in data),
        repeated_steps_of_the_finished_turn=sum(begun[what, 0] - count for what in ("model", "quick", "slow")),
        calls_begun_again=begun["model", 1] - count,
    )  # fmt: skip
    assert exitcode == 0
    assert took < grace
    assert statuses == {"queued": count}
    for each in data:
        check_result(each, turns=2)
        assert each["retries"] == 0
    assert begun["model", 0] == begun["quick", 0] == begun["slow", 0] == count
    assert begun["model", 1] == 2 * count
    assert await system.stop() == 0
