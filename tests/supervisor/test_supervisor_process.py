"""One child as a process. Real: the processes, started by the test itself. They need no server."""

import asyncio
import os
import re
import select
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from factorial.errors import SupervisionError
from factorial.mailbox.operations.lease import Cause
from factorial.supervisor.process.child_process import ChildProcess
from factorial.supervisor.rules.spec import ChildExit, ChildSpec, ExitReason
from factorial.supervisor.service.system import cause_of


@pytest.fixture
def spec(tmp_path: Path) -> ChildSpec:
    return ChildSpec(
        id="child", target="tests.supervisor.targets:obedient", kwargs={"diary": str(tmp_path / "diary")}, shutdown=2
    )


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    yield
    left = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    for child in left:
        child.kill()
    assert not left


async def ended(child: ChildProcess) -> ChildExit:
    return await asyncio.wait_for(child.exited(), 10)


async def started(spec: ChildSpec, target: str = "") -> ChildProcess:
    """A child that is ready."""
    child = ChildProcess(replace(spec, target=f"tests.supervisor.targets:{target}") if target else spec)
    assert await child.ready(), child.failure
    return child


async def test_it_gets_ready_and_drains(spec: ChildSpec) -> None:
    main = sys.modules["__main__"]
    child = ChildProcess(spec)
    assert sys.modules["__main__"] is main
    assert await child.ready() is True
    child.drain()
    exit = await ended(child)
    assert exit == ChildExit("child", child.process, child.pid, 0, None, ExitReason.SHUTDOWN, asked=True)
    child.drain()
    child.dump()
    child.kill()  # it has ended: no error, and no other process is hit


async def test_no_descriptor_is_left_open(spec: ChildSpec) -> None:
    async def live_and_die() -> None:
        child = ChildProcess(spec)
        assert await child.ready()
        child.kill()
        await ended(child)

    await live_and_die()
    before = psutil.Process().num_fds()
    await live_and_die()
    assert psutil.Process().num_fds() == before


async def test_its_end_is_seen_without_a_pidfd(spec: ChildSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on systems without pidfd."""
    monkeypatch.delattr(os, "pidfd_open")
    child = ChildProcess(spec)
    assert await child.ready()
    os.kill(child.pid, signal.SIGKILL)
    assert (await ended(child)).exitcode == -signal.SIGKILL


async def test_the_end_is_seen_if_another_process_collects_the_exit_code(spec: ChildSpec) -> None:
    child = ChildProcess(spec)
    assert await child.ready()
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)  # noqa: ASYNC222  # it has ended: no waiting
    exit = await ended(child)
    assert (exit.exitcode, exit.signal, exit.reason) == (None, None, ExitReason.ABNORMAL)


async def test_a_process_that_ends_before_it_is_ready_reports_why(spec: ChildSpec, tmp_path: Path) -> None:
    child = ChildProcess(ChildSpec(id="c", target="tests.supervisor.targets:fails", kwargs=spec.kwargs))
    assert await child.ready() is False
    exit = await ended(child)
    assert (exit.exitcode, exit.reason, exit.asked) == (1, ExitReason.ABNORMAL, False)
    assert child.failure == "ValueError: no such luck"


async def test_a_long_failure_is_cut(spec: ChildSpec) -> None:
    """A report goes through the pipe in one piece."""
    child = ChildProcess(replace(spec, target="tests.supervisor.targets:fails_at_length"))
    assert await child.ready() is False
    await ended(child)
    assert child.failure.startswith("ValueError: üüü")
    assert len(child.failure.encode()) <= select.PIPE_BUF


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("no_such_module_at_all:run", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("tests.supervisor.targets:nothing", "tests.supervisor.targets:nothing is not an `async def` function"),
        ("tests.supervisor.targets:note", "tests.supervisor.targets:note is not an `async def` function"),
    ],
)
async def test_a_target_that_cannot_run(target: str, named: str) -> None:
    child = ChildProcess(ChildSpec(id="child", target=target))
    assert await child.ready() is False
    await ended(child)
    assert child.failure.startswith(named)


async def test_the_operating_system_refuses(spec: ChildSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.util.spawnv_passfds", refuse)
    with pytest.raises(SupervisionError, match=r"child 'child' could not be started: .*temporarily unavailable"):
        ChildProcess(spec)


async def test_the_signal_mask_is_restored(spec: ChildSpec) -> None:
    """Signals are blocked only while a process is started."""
    child = ChildProcess(spec)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    child.kill()
    await ended(child)


async def test_an_end_by_itself_is_normal(spec: ChildSpec) -> None:
    child = await started(spec, "exits")
    exit = await ended(child)
    assert (exit.exitcode, exit.reason, exit.asked) == (0, ExitReason.NORMAL, False)


async def test_a_kill_without_a_reason_is_a_shutdown(spec: ChildSpec) -> None:
    child = await started(spec, "stubborn")
    child.kill()
    exit = await ended(child)
    assert (exit.signal, exit.reason, exit.asked, exit.why) == ("SIGKILL", ExitReason.SHUTDOWN, True, "")


async def test_a_child_that_leaves_when_asked_was_shut_down(spec: ChildSpec) -> None:
    child = await started(replace(spec, kwargs={**spec.kwargs, "seconds": 600}), "slow")
    child.drain()
    child.leave()
    exit = await ended(child)
    assert (exit.exitcode, exit.reason, exit.asked) == (0, ExitReason.SHUTDOWN, True)


async def test_a_child_that_does_not_drain_and_is_killed_ends_abnormally_but_was_asked(spec: ChildSpec) -> None:
    child = await started(replace(spec, shutdown=0.3), "stubborn")
    child.drain()
    await asyncio.sleep(0.5)
    child.kill()
    child.kill("it was of no use")  # only the first reason counts
    exit = await ended(child)
    assert (exit.signal, exit.reason, exit.asked) == ("SIGKILL", ExitReason.ABNORMAL, True)
    assert exit.why == "it did not stop within 0.3 s"


async def test_the_time_to_stop_in_the_message_is_the_time_that_passed(spec: ChildSpec) -> None:
    """The kill comes before the limit, as when the supervision itself is cancelled."""
    child = await started(replace(spec, shutdown=600), "stubborn")
    child.leave()
    await asyncio.sleep(0.5)
    child.kill()
    assert re.fullmatch(r"it did not stop within 0\.[5-9] s", (await ended(child)).why)


async def test_a_child_that_was_asked_counts_as_asked_when_it_is_killed_for_its_health(spec: ChildSpec) -> None:
    """So its tasks are not suspects."""
    child = await started(spec, "stubborn")
    child.drain()
    child.kill("its event loop was blocked for 15.0 s")  # as by a monitor that had decided before
    exit = await ended(child)
    assert (exit.signal, exit.reason, exit.asked) == ("SIGKILL", ExitReason.ABNORMAL, True)
    assert exit.why == "its event loop was blocked for 15.0 s"
    assert cause_of(exit) is Cause.LEFT


async def test_a_kill_without_a_reason_stays_a_shutdown_when_a_kill_for_health_follows(
    spec: ChildSpec,
) -> None:
    child = await started(spec, "stubborn")
    child.kill()
    child.kill("its event loop was blocked for 15.0 s")
    exit = await ended(child)
    assert (exit.reason, exit.asked, exit.why) == (ExitReason.SHUTDOWN, True, "")


async def test_a_child_killed_for_its_health_ends_abnormally_and_was_not_asked(spec: ChildSpec) -> None:
    child = await started(spec)
    child.kill("it was of no use")
    child.drain()  # as by a tree that shuts down meanwhile
    child.kill()
    exit = await ended(child)
    assert (exit.signal, exit.reason, exit.asked) == ("SIGKILL", ExitReason.ABNORMAL, False)
    assert exit.why == "it was of no use"
    assert cause_of(exit) is Cause.CRASHED


async def test_a_child_that_ends_before_the_kill_was_not_killed(spec: ChildSpec) -> None:
    child = await started(replace(spec, kwargs={**spec.kwargs, "code": 1}), "exits")
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222  # it has ended, and is not collected yet
    child.kill("it was of no use")
    exit = await ended(child)
    assert (exit.signal, exit.why) == (None, "")


async def test_a_kill_from_outside(spec: ChildSpec) -> None:
    child = await started(spec)
    os.kill(child.pid, signal.SIGKILL)
    exit = await ended(child)
    assert (exit.signal, exit.reason, exit.asked, exit.why) == ("SIGKILL", ExitReason.ABNORMAL, False, "")


async def test_a_kill_by_the_kernel_because_memory_ran_out(spec: ChildSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's count of such kills is simulated."""
    kills = 3
    monkeypatch.setattr("factorial.supervisor.process.child_process.kills_for_memory", lambda: kills)
    child = await started(spec)
    kills = 4
    child.measure({})  # measured while the child is alive
    kills = 5
    os.kill(child.pid, signal.SIGKILL)
    assert (await ended(child)).why.startswith("probably out of memory")

    child = await started(spec)
    kills = 6
    child.measure({})
    os.kill(child.pid, signal.SIGKILL)
    assert (await ended(child)).why == ""
