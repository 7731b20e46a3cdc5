"""Stops of every kind in the middle of work: of a process (SIGSTOP), of the tree (SIGTERM), of the supervisor alone
(SIGKILL), and of everything at once, the server included.

Real: supervisor, worker processes, Valkey (a shared one, or an embedded one with its own AOF), signals. Scripted: the
model.
"""

import asyncio
import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.chaos.figures import fault
from tests.chaos.system import System, check_events, check_result, show
from tests.redis.doctor import assert_invariants
from tests.support import wait_until


@pytest.mark.parametrize("moment", ["in the same turn", "in the next turn"])
async def test_a_process_that_was_stopped_beyond_its_lease_commits_nothing(system: System, moment: str) -> None:
    """It comes back with the result of a tool while the new holder is at that tool itself, or one turn further."""
    lease = 1.5
    system.configure(heartbeat=lease / 2)
    await system.start()
    task = await system.enqueue(tool_seconds=0.4)
    seen = await system.sees(task, what="slow", turn=2, edge="begin")
    await system.told(task, "progress_update_tool_action_completed", turn=2)  # `quick`, which needs no time
    stopped = psutil.Process(seen["pid"])
    stopped.suspend()
    stopped_at = time.time()
    try:
        taken = await wait_until(
            lambda: [line for line in system.lines(task) if line["process"] != seen["process"]],
            message="another process to take the task over",
        )
        if moment == "in the next turn":
            await system.sees(task, process=taken[0]["process"], what="slow", turn=3, edge="begin")
    finally:
        stopped.resume()
    answer = await wait_until(
        lambda: [
            line.split(": ", 1)[1]
            for line in system.log.read_text().splitlines()
            if f" {seen['process']} factorial.task: task {task.id}" in line and ": started at" not in line
        ],
        message="what the stopped process was told",
    )
    [told] = answer
    data = await system.finished(task)
    events = await system.events(task)
    names = [(event["metadata"] or {}).get("process") for event in events]
    late = names[names.index(taken[0]["process"]) :].count(seen["process"])
    executed = system.executed(task)
    show(
        f"SIGSTOP beyond the lease ({lease} s), SIGCONT when the new holder is {moment}",
        stopped=f"{seen['process']}, in {seen['what']} of turn {seen['turn']}",
        goes_on=f"in {taken[0]['process']}, {taken[0]['at'] - stopped_at:.1f} s later "
        "(a lease, and as long again in which a living process would have registered)",
        answer_to_the_stopped_process=told,
        its_events_after_that=late,
        state=f"{data['status']}, {len(data['payload']['messages'])} messages, pickups {data['pickups']}",
        calls=f"model 6 needed, {executed['model']} executed; tools 10 needed, {executed['quick'] + executed['slow']}",
    )
    check_result(data)
    check_events(events)
    assert "superseded: another process holds it now" in told
    assert late == 0
    assert executed == {"model": 6, "quick": 5, "slow": 6}
    fault(f"SIGSTOP under a supervisor, SIGCONT {moment}", zombies=1, their_commits=0, their_late_events=late)
    # It is alive, has a lease again, and takes up new work.
    again = await asyncio.gather(*(system.enqueue(turns=0, model_seconds=0.5) for _ in range(12)))
    takers = {(await system.sees(each, edge="begin"))["process"] for each in again}
    assert seen["process"] in takers
    assert await system.stop() == 0


async def test_a_graceful_stop_gives_the_work_back_and_the_next_start_goes_on(system: System) -> None:
    system.configure(grace=10.0)
    await system.start()
    tasks = [await system.enqueue(model_seconds=0.15, tool_seconds=0.15) for _ in range(4)]
    for task in tasks:
        await system.sees(task, what="model", turn=1, edge="begin")
    begun = time.monotonic()
    exitcode = await system.stop()
    took = time.monotonic() - begun
    between = [await system.orchestrator.get_task_data(task.id) for task in tasks]
    # Multiprocessing's tracker sees the end of the supervisor, and ends a moment later.
    await wait_until(lambda: not system.members(), message="no process left")
    await system.start()
    data = [await system.finished(task) for task in tasks]
    executed = [system.executed(task) for task in tasks]
    show(
        "SIGTERM to the supervisor, four tasks in the middle of their work",
        exit_code=exitcode,
        seconds=f"{took:.2f} (grace: 10)",
        processes_left=0,
        tasks_then=[
            f"{each['status']}, turn {each['payload']['turn']}, retries {each['retries']}" for each in between if each
        ],
        after_the_next_start=[f"{each['status']}, pickups {each['pickups']}" for each in data],
        calls_in_excess=[sum(calls.values()) - 16 for calls in executed],
    )
    assert exitcode == 0
    assert took < 10
    for task, then, now, calls in zip(tasks, between, data, executed, strict=True):
        assert then is not None
        assert (then["status"], then["retries"], then["process"]) == ("queued", 0, None)
        check_result(now)
        assert (now["retries"], now["pickups"]) == (0, 2)
        assert sum(calls.values()) == 16  # a step boundary was waited for: nothing was broken off
        check_events(await system.events(task))
    assert await system.stop() == 0


async def test_children_leave_when_their_supervisor_is_killed(system: System) -> None:
    system.configure(grace=4.0)
    await system.start()
    tasks = [await system.enqueue(model_seconds=0.2, tool_seconds=0.2) for _ in range(4)]
    for task in tasks:
        await system.sees(task, what="model", turn=1, edge="begin")
    system.process.kill()
    killed_at = time.monotonic()
    await wait_until(lambda: not system.members(), message="no orphan")
    took = time.monotonic() - killed_at
    await system.process.wait()
    between = [await system.orchestrator.get_task_data(task.id) for task in tasks]
    show(
        "SIGKILL of the supervisor alone",
        seconds_until_no_process_was_left=f"{took:.2f}",
        tasks_then=[
            f"{each['status']}, turn {each['payload']['turn']}, retries {each['retries']}" for each in between if each
        ],
    )
    for each in between:
        assert each is not None
        assert (each["status"], each["retries"], each["process"]) == ("queued", 0, None)
    await system.start()
    for task in tasks:
        check_result(await system.finished(task))
        assert sum(system.executed(task).values()) == 16
    assert await system.stop() == 0


async def test_everything_is_killed_at_once_and_nothing_is_lost(tmp_path: Path, short_directory: Path) -> None:
    """Supervisor, worker processes and the embedded Valkey: the next start finds all of it in DIR."""
    system = System(tmp_path, f"embedded:{short_directory}/data", "t")
    server = None
    try:
        system.configure(heartbeat=1.0)
        await system.start()
        tasks = [await system.enqueue(model_seconds=0.1, tool_seconds=0.1) for _ in range(4)]
        for task in tasks:
            await system.sees(task, what="model", turn=2, edge="begin")
        server = psutil.Process(int((short_directory / "data" / "valkey.pid").read_text()))
        for process in [server, *system.members()]:
            process.kill()
        await system.process.wait()
        await wait_until(lambda: not system.members(), message="all of it to be dead")
        calls_before = [sum(system.executed(task).values()) for task in tasks]
        begun = time.time()
        await system.start()
        started = time.time()
        data = [await system.finished(task) for task in tasks]
        goes_on = [
            min(line["at"] for line in system.lines(task, edge="begin")[calls:])
            for task, calls in zip(tasks, calls_before, strict=True)
        ]
        excess = [sum(system.executed(task).values()) - 16 for task in tasks]
        show(
            "SIGKILL of the supervisor, its processes and the embedded Valkey, and a new start",
            ready_again_after=f"{started - begun:.2f} s",
            tasks_go_on_after=[f"{max(at - started, 0):.2f} s" for at in goes_on],
            after_that=[f"{each['status']}, pickups {each['pickups']}, retries {each['retries']}" for each in data],
            calls_in_excess=excess,
        )
        for task, each in zip(tasks, data, strict=True):
            check_result(each)
            check_events(await system.events(task))
        assert all(0 <= calls <= 2 for calls in excess)
        await assert_invariants((await system.orchestrator._namespace()).connection, system.namespace)
        fault(
            "SIGKILL of everything, the server included",
            tasks=len(tasks),
            lost=len(tasks) - sum(each["status"] == "completed" for each in data),
            repeated_steps=sum(excess),
        )
        assert await system.stop() == 0
        await system.orchestrator.close()
        await wait_until(lambda: not server.is_running(), message="the end of the server")
        await wait_until(lambda: not (short_directory / "data" / "valkey.sock").exists(), message="the new one's end")
    finally:
        await system.clean_up()


async def test_a_script_without_a_guard_runs_the_system_until_ctrl_c(system: System) -> None:
    """`orchestrator.run()` at the top level: the processes that import the script start no systems of their own."""
    script = system.directory / "my_script.py"
    system.configure()  # for the orders
    script.write_text(f"""
from factorial import AgentWorkerConfig, HealthConfig, Orchestrator, RunnerSupervisorConfig
from tests.chaos.agents import Worker

agent = Worker()
orchestrator = Orchestrator(redis_url="{system.url}", namespace="{system.namespace}")
orchestrator.register_runner(
    agent=agent, agent_worker_config=AgentWorkerConfig(processes=2), restart="transient",
    supervisor_config=RunnerSupervisorConfig(intensity=9), health_config=HealthConfig(blocked_after=5.0),
)
orchestrator.run()
print("run() has returned")
""")
    await system.start(str(script))
    assert (await system.nodes())["work"]["intensity"] == 9
    system.process.send_signal(signal.SIGHUP)
    await system.logs("system: reloaded: replaced work.1, work.2")
    task = await system.enqueue()
    await system.sees(task, what="model", turn=1, edge="begin")
    os.killpg(system.process.pid, signal.SIGINT)  # as a terminal does: to every process of the job
    begun = time.monotonic()
    exitcode = await system.stop(signal.SIGCONT)
    took = time.monotonic() - begun
    status = await system.status(task)
    processes = sorted(set(re.findall(r"my_script|work\.\d+-\w+(?= \(pid)", system.log.read_text())))
    show(
        "orchestrator.run() in a script without a guard, ended by SIGINT",
        processes=processes,
        exit_code=f"{exitcode}, after {took:.2f} s",
        task=status,
    )
    assert exitcode == 0
    assert len(processes) == 4
    assert status == "queued"
    assert "Traceback" not in system.log.read_text()
    await wait_until(lambda: not system.members(), message="no process left")
