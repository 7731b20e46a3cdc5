"""Life and death of supervisors and children: real processes and real signals; the children need no Redis."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable

import psutil
import pytest

from tests.supervisor.conftest import Host
from tests.support import wait_until

Gone = Callable[[float], Awaitable[None]]
LONG = {"shutdown": 60.0}


async def test_children_receive_plain_data_and_do_not_import_the_main_module(host: Host, gone: Gone) -> None:
    await host.start({}, ("obedient", {}))
    [started] = await host.has("started")
    assert started["inside_child"] is True
    assert started["main"] == ""
    assert started["process"].startswith("child.1-")
    await host.is_ready()
    host.process.send_signal(signal.SIGTERM)
    assert await host.process.wait() == 0


async def test_there_is_no_manager_process(host: Host) -> None:
    """The supervisor, its children and multiprocessing's tracker: nothing else."""
    await host.start({}, ("obedient", {}), ("obedient", {}))
    await host.is_ready()
    commands = sorted(" ".join(process.cmdline()) for process in host.members())
    assert len(commands) == 4
    assert sum("spawn_main" in command for command in commands) == 2
    assert sum("resource_tracker" in command for command in commands) == 1
    host.process.send_signal(signal.SIGTERM)
    await host.process.wait()


async def test_a_killed_child_is_noticed_at_once_and_restarted(host: Host) -> None:
    await host.start({}, ("obedient", {}), ("obedient", {}))
    await host.is_ready()
    first, second = host.noted("started")
    killed_at = time.monotonic()
    os.kill(first["pid"], signal.SIGKILL)
    [exit] = await host.has("exited")
    assert time.monotonic() - killed_at < 0.5
    assert (exit["process"], exit["pid"], exit["signal"]) == (first["process"], first["pid"], "SIGKILL")
    assert (exit["exitcode"], exit["reason"]) == (-9, "abnormal")
    again = (await host.has("started", 3))[2]
    assert again["process"].startswith("child.1-")
    assert again["process"] != first["process"]
    assert psutil.pid_exists(second["pid"])
    host.process.send_signal(signal.SIGTERM)
    assert await host.process.wait() == 0


async def test_restarts_work_after_the_tracker_of_multiprocessing_was_killed(host: Host) -> None:
    await host.start({}, ("obedient", {}))
    await host.is_ready()
    [tracker] = [process for process in host.members() if "resource_tracker" in " ".join(process.cmdline())]
    tracker.kill()
    os.kill(host.noted("started")[0]["pid"], signal.SIGKILL)
    await host.has("started", 2)
    host.process.send_signal(signal.SIGTERM)
    assert await host.process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whom", ["supervisor", "group", "everybody"])
async def test_one_signal_drains_whether_it_reaches_the_supervisor_or_all_processes(
    host: Host, number: signal.Signals, whom: str
) -> None:
    """systemd signals all processes of a unit, and the supervisor then signals its children, too. The second signal
    must not mean "leave now"."""
    first, second = ("slow", {"kwargs": {"seconds": 1.0}, **LONG}), ("slow", {"kwargs": {"seconds": 0.4}, **LONG})
    await host.start({"strategy": "rest_for_one"}, first, second)
    await host.is_ready()
    if whom == "supervisor":
        host.process.send_signal(number)
    elif whom == "group":
        host.signal_group(number)
    else:
        for process in host.members():
            process.send_signal(number)
    assert await host.process.wait() == 0
    assert len(host.noted("drained")) == 2
    assert not host.noted("left")
    assert "Traceback" not in host.stderr.read_text()


async def test_children_drain_together_and_within_the_grace(host: Host) -> None:
    slow = ("slow", {"kwargs": {"seconds": 1.0}, **LONG})
    await host.start({}, slow, slow, slow)
    await host.is_ready()
    began = time.monotonic()
    host.process.send_signal(signal.SIGTERM)
    assert await host.process.wait() == 0
    assert time.monotonic() - began < 2.5
    assert len(host.noted("drained")) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_second_signal_means_leave_now(host: Host, number: signal.Signals) -> None:
    slow = ("slow", {"kwargs": {"seconds": 600}, **LONG})
    await host.start({}, slow, slow)
    await host.is_ready()
    host.process.send_signal(number)
    await host.has("draining")
    await asyncio.sleep(0.35)  # closer together, two signals are one request
    host.process.send_signal(number)
    assert await asyncio.wait_for(host.process.wait(), 5) == 0
    assert len(host.noted("left")) == 2


async def test_a_signal_during_the_start_leaves_nothing(host: Host) -> None:
    await host.start({}, ("obedient", {}), ("never_ready", {"shutdown": 0.2}))
    await host.has("started", 2)
    host.signal_group(signal.SIGINT)
    assert await host.process.wait() == 0
    assert "Traceback" not in host.stderr.read_text()


async def test_a_signal_while_a_child_starts_does_not_end_it_abnormally(host: Host) -> None:
    """The signal reaches the child before it handles signals, or has left the group: it stays pending."""
    await host.start({}, ("obedient", {}))

    def born() -> bool:
        return any("spawn_main" in " ".join(process.cmdline()) for process in host.members())

    await wait_until(born)
    host.signal_group(signal.SIGINT)
    assert await host.process.wait() == 0
    assert [exit["exitcode"] for exit in host.noted("exited")] == [0]
    assert "Traceback" not in host.stderr.read_text()


async def test_a_child_that_does_not_stop_is_killed(host: Host) -> None:
    await host.start({}, ("stubborn", {"shutdown": 0.3}))
    await host.is_ready()
    host.process.send_signal(signal.SIGTERM)
    assert await host.process.wait() == 0
    [exit] = host.noted("exited")
    assert (exit["signal"], exit["reason"]) == ("SIGKILL", "abnormal")
    assert "has not stopped in time" in host.stderr.read_text()


async def test_children_of_a_killed_supervisor_drain_and_leave(host: Host, gone: Gone) -> None:
    await host.start({}, ("obedient", {}), ("slow", {"kwargs": {"seconds": 0.3}}))
    await host.is_ready()
    host.process.kill()
    await gone(5)
    assert len(host.noted("drained")) == 2


async def test_orphans_that_do_not_drain_are_asked_to_leave_and_then_end_in_any_case(host: Host, gone: Gone) -> None:
    slow = ("slow", {"kwargs": {"seconds": 600}, "shutdown": 0.3})
    await host.start({}, slow, ("stubborn", {"shutdown": 0.3}))
    await host.is_ready()
    host.process.kill()
    await gone(8)
    assert len(host.noted("left")) == 1


async def test_a_supervisor_killed_during_the_start_leaves_nothing(host: Host, gone: Gone) -> None:
    await host.start({}, ("obedient", {}), ("never_ready", {"shutdown": 0.1}))
    await host.has("started", 1)
    host.process.kill()
    await gone(10)


async def test_a_crash_loop_ends_the_tree_with_one_clear_line(host: Host) -> None:
    await host.start({"intensity": 3, "backoff": 0.01}, ("obedient", {}), ("exits", {"kwargs": {"code": 1}}))
    assert await host.process.wait() == 1
    assert len([exit for exit in host.noted("exited") if exit["child_id"] == "child.2"]) == 4
    assert len(host.noted("drained")) == 1
    last = host.stderr.read_text().splitlines()[-1]
    assert last.startswith("factorial: supervisor 'root' has given up: 4 restarts within 5 s, where intensity allows 3")


async def test_a_child_that_fails_at_its_start_fails_the_tree_and_says_why(host: Host) -> None:
    await host.start({}, ("obedient", {}), ("fails", {}))
    assert await host.process.wait() == 1
    assert len(host.noted("drained")) == 1
    last = host.stderr.read_text().splitlines()[-1]
    assert last == "factorial: child 'child.2' could not be started: ValueError: no such luck"


async def test_a_child_that_is_not_ready_in_time_fails_the_tree(host: Host) -> None:
    await host.start({}, ("never_ready", {"start_timeout": 0.5}))
    assert await host.process.wait() == 1
    assert "was not ready within 0.5 s" in host.stderr.read_text()


async def test_a_restart_that_fails_is_tried_again(host: Host) -> None:
    flags = {"intensity": 2, "backoff": 0.01}
    await host.start(flags, ("fails_later", {"kwargs": {"good_starts": 1}}))
    await host.is_ready()
    os.kill(host.noted("started")[0]["pid"], signal.SIGKILL)
    assert await host.process.wait() == 1
    assert len(host.noted("started")) == 3
    assert "given up: 3 restarts" in host.stderr.read_text()


async def test_the_programs_of_a_killed_child_die_with_it(host: Host) -> None:
    """They do not hide its death, although they keep its end of the sentinel open."""
    await host.start({}, ("with_grandchild", {}))
    await host.is_ready()
    [started] = host.noted("started")
    os.kill(started["pid"], signal.SIGKILL)
    await host.has("exited", timeout=2)
    await wait_until(lambda: not psutil.pid_exists(started["grandchild"]), message="the end of the grandchild")
    host.process.send_signal(signal.SIGTERM)
    assert await host.process.wait() == 0


async def test_a_thread_that_does_not_return_does_not_keep_the_process(host: Host) -> None:
    await host.start({}, ("with_endless_thread", LONG))
    await host.is_ready()
    host.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(host.process.wait(), 8) == 0
    assert [exit["exitcode"] for exit in host.noted("exited")] == [0]


async def test_a_transient_child_that_ends_normally_stays_ended(host: Host) -> None:
    await host.start({}, ("exits", {"restart": "transient"}), ("obedient", {}))
    await host.is_ready()
    [exit] = await host.has("exited")
    assert exit["reason"] == "normal"
    host.process.send_signal(signal.SIGTERM)
    assert await host.process.wait() == 0
    assert len(host.noted("started")) == 2


async def test_log_lines_name_their_process(host: Host) -> None:
    await host.start({}, ("exits", {"kwargs": {"code": 1}, "restart": "temporary"}))
    [exit] = await host.has("exited")
    assert f"ERROR   {exit['process']} factorial.supervisor.process.lifeline" in host.stderr.read_text()
    host.process.send_signal(signal.SIGTERM)
    await host.process.wait()


@pytest.mark.parametrize(("strategy", "again"), [("one_for_all", 3), ("rest_for_one", 2)])
async def test_a_group_is_restarted_together(host: Host, strategy: str, again: int) -> None:
    """The siblings are terminated in reverse order, by SIGTERM, and all are started in order."""
    await host.start({"strategy": strategy}, ("obedient", {}), ("obedient", {}), ("obedient", {}))
    await host.is_ready()
    os.kill(host.noted("started")[1]["pid"], signal.SIGKILL)
    started = await host.has("started", 3 + again)
    names = [entry["process"].rsplit("-", 1)[0] for entry in started]
    assert names[3:] == ["child.1", "child.2", "child.3"][3 - again :]
    drained = [entry["process"].rsplit("-", 1)[0] for entry in host.noted("drained")]
    assert drained == (["child.3", "child.1"] if strategy == "one_for_all" else ["child.3"])
    host.process.send_signal(signal.SIGTERM)
    assert await host.process.wait() == 0


async def test_the_end_of_a_significant_child_ends_the_supervisor(host: Host) -> None:
    significant = ("exits", {"restart": "transient", "significant": True})
    await host.start({"auto_shutdown": "any_significant"}, ("obedient", {}), significant)
    assert await asyncio.wait_for(host.process.wait(), 10) == 0
    assert len(host.noted("drained")) == 1
    assert "the significant children have ended" in host.stderr.read_text()
