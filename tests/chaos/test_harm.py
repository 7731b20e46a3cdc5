"""Tasks and runners that do harm to the processes that they are executed in, and what becomes of the others.

Real: supervisor, worker processes, Valkey, signals. Scripted: the model.
"""

import asyncio
import re
import signal
import time
from collections import Counter

import pytest

from tests.chaos.figures import fault
from tests.chaos.system import ROOT, System, show
from tests.support import wait_until


@pytest.mark.parametrize("how", ["be killed", "crash", "exit"])
async def test_a_task_that_kills_its_process_three_times_alone_is_ended(system: System, how: str) -> None:
    system.configure(agent="harm", processes=1)
    await system.start()
    culprit = await system.enqueue_harm(harm=how)
    began = time.monotonic()
    data = await system.finished(culprit)
    processes = {line["process"] for line in system.lines(culprit)}
    show(
        f"a task alone whose tool has its process {how}",
        seconds=f"{time.monotonic() - began:.1f}",
        processes_lost=len(processes),
        ends=f"{data['status']}: {data['error']}",
        retries=data["retries"],
    )
    assert data["status"] == "failed"
    assert "crash_loop" in data["error"]
    assert len(processes) == 3
    assert await system.stop() == 0


async def test_an_asyncio_task_that_leaves_ends_neither_its_process_nor_its_neighbours(system: System) -> None:
    """asyncio lets `SystemExit` in any task stop the event loop, also in one that a tool has started."""
    system.configure(agent="harm", processes=1, batch_size=10)
    await system.start()
    neighbours = [await system.enqueue_harm(seconds=1.0) for _ in range(5)]
    await wait_until(lambda: len(system.witness()) >= 5, message="5 tasks under way")
    culprit = await system.finished(await system.enqueue_harm(harm="leave elsewhere", seconds=0.1))
    assert (culprit["status"], culprit["pickups"]) == ("completed", 1)
    assert "SystemExit: I leave, and the event loop with me" in culprit["payload"]["messages"][2]["content"]
    assert {(each["status"], each["pickups"]) for each in await system.all_end(neighbours)} == {("completed", 1)}
    assert "SystemExit was raised in an asyncio task" in system.log.read_text()
    assert await system.stop() == 0


async def test_the_neighbours_of_a_culprit_lose_no_attempt(system: System) -> None:
    system.configure(agent="harm", processes=3, workers=4, batch_size=10)
    await system.start()
    neighbours = [await system.enqueue_harm(seconds=2.5) for _ in range(30)]
    await wait_until(lambda: len(system.witness()) >= 30, message="30 tasks under way")
    culprit = await system.enqueue_harm(harm="crash", seconds=0.2)
    # They keep coming, as in life.
    for _ in range(10):
        await asyncio.sleep(0.2)
        neighbours.append(await system.enqueue_harm(seconds=1.0))
    culprits, data = await system.finished(culprit, 120), await system.all_end(neighbours)
    lost = system.log.read_text().count("ended by SIGSEGV")
    show(
        "a task that crashes its process, among 40 others",
        processes_lost=lost,
        culprit=f"{culprits['status']}: {culprits['error']}",
        neighbours=dict(Counter(each["status"] for each in data)),
        their_retries=sum(each["retries"] for each in data),
        their_pickups=dict(Counter(each["pickups"] for each in data)),
    )
    assert "crash_loop" in culprits["error"]
    assert {each["status"] for each in data} == {"completed"}
    assert sum(each["retries"] for each in data) == 0
    assert lost <= 6
    fault("a task that crashes its processes, under a supervisor", processes_lost=lost, neighbours_completed=len(data))
    assert await system.stop() == 0


async def test_a_blocked_event_loop_is_found_named_and_replaced(system: System) -> None:
    limit = 1.5
    system.configure(agent="harm", processes=2, workers=2, more=f"health = {{ blocked_after = {limit} }}")
    await system.start()
    culprit = await system.enqueue_harm(harm="block", seconds=0.1)
    [begun] = await wait_until(lambda: system.lines(culprit, edge="begin"), message="the blocking tool")
    await system.logs("its event loop was blocked for")
    found = time.time() - begun["at"] - 0.1
    await wait_until(lambda: len(system.lines(culprit, edge="begin")) >= 2, message="the task in another process")
    dump = [line for line in system.log.read_text().splitlines() if "agents.py" in line and " in do" in line]
    data = await system.finished(culprit, 120)
    show(
        f"an event loop that is blocked, limit {limit} s",
        found_after=f"{found:.1f} s",
        dump=dump[0].strip(),
        the_task_in_the_end=f"{data['status']}: {data['error']}",
    )
    assert limit / 2 < found < limit + 15  # counted from the last beat, which came up to two fifths of it earlier
    line = int(re.findall(r"line (\d+)", dump[0])[0])
    with open(ROOT / "tests/chaos/agents.py") as file:  # noqa: ASYNC230  # a small file
        assert "this is the blocking line" in file.read().splitlines()[line - 1]
    assert "crash_loop" in data["error"]
    fault(f"an event loop that is blocked, limit {limit} s", found_after=f"{found:.1f} s", ended_by="crash_loop")
    innocent = await system.enqueue_harm()
    assert (await system.finished(innocent))["status"] == "completed"
    assert await system.stop() == 0


TWO = """
supervisor = { intensity = 2, period = 300 }
[[runner]]
agent = "tests.chaos.doomed:doomed"
supervisor = { intensity = 2, period = 300 }
"""


async def test_the_crash_loop_of_one_runner_leaves_the_others_unharmed_until_the_root_gives_up(system: System) -> None:
    """Each time the runner gives up, its parent starts it again, until that is too often, too (OTP, permanent)."""
    system.configure(supervisor="intensity = 1\nperiod = 600", more=TWO)
    began = time.monotonic()
    await system.start()
    tasks = [await system.enqueue(turns=900, model_seconds=0.1, tool_seconds=0.1) for _ in range(4)]
    exitcode = await asyncio.wait_for(system.process.wait(), 240)
    lasted = time.monotonic() - began
    log = system.log.read_text()
    data = [await system.orchestrator.get_task_data(task.id) for task in tasks]
    show(
        "one runner in a crash loop: intensity 2 in 300 s, the root's 1 in 600 s",
        its_processes=log.count("exit code 3: abnormal"),
        seconds=f"{lasted:.1f}",
        exit_code=exitcode,
        message=log.splitlines()[-1],
        tasks_of_the_other_runner=[
            f"{each['status']}, turn {each['payload']['turn']}, retries {each['retries']}, pickups {each['pickups']}"
            for each in data if each
        ],
    )  # fmt: skip
    assert exitcode == 1
    assert log.count("exit code 3: abnormal") == (2 + 1) * (1 + 1)
    assert log.splitlines()[-1].startswith("factorial: supervisor 'system' has given up: 2 restarts within 600 s")
    assert "Traceback" not in log
    for each in data:
        assert each is not None
        assert (each["status"], each["retries"], each["pickups"]) == ("queued", 0, 1)
        assert each["payload"]["turn"] > 3
    # Multiprocessing's tracker sees the end of the supervisor, and ends a moment later.
    await wait_until(lambda: not system.members(), message="no process left")


async def test_a_transient_runner_that_gives_up_stays_ended_and_the_others_go_on(system: System) -> None:
    system.configure(more=TWO + 'restart = "transient"')
    await system.start()
    await system.logs("supervisor 'doomed' has given up: 3 restarts within 300 s, where intensity allows 2")
    task = await system.enqueue(turns=2)
    assert (await system.finished(task))["status"] == "completed"
    assert (await system.nodes())["doomed"]["state"] == "gave up"
    assert (await system.order("restart", "doomed")).startswith("started doomed; in ")
    assert system.process.returncode is None
    assert await system.stop(signal.SIGTERM) == 0
