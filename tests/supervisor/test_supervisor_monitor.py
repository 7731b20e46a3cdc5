"""The health of children: real processes that block, eat, hang and print, and the monitor that watches them.

They need no Redis. The part of the tree (who is watched, who is replaced) is played by the test.
"""

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from factorial.supervisor.process.child_process import ChildProcess
from factorial.supervisor.process.monitor import Monitor
from factorial.supervisor.process.usage import descendants
from factorial.supervisor.rules import health
from factorial.supervisor.rules.spec import ChildExit, ChildSpec, ExitReason, HealthLimits
from tests.supervisor import targets
from tests.support import wait_until

MB = 1024 * 1024
QUICK = HealthLimits(blocked_after=0.5)


@contextmanager
def redirected(descriptor: int, file: Path) -> Iterator[None]:
    """Let the children inherit this file. (`capfd` loses what they write while it is read.)"""
    before = os.dup(descriptor)
    with file.open("ab") as opened:
        os.dup2(opened.fileno(), descriptor)
    try:
        yield
    finally:
        os.dup2(before, descriptor)
        os.close(before)


class Ward:
    """The children under a monitor."""

    def __init__(self, directory: Path) -> None:
        self.diary = directory / "diary"
        self.stdout = directory / "stdout"
        self.stderr = directory / "stderr"
        self.replaced: list[tuple[str, str, float]] = []
        self.children: list[ChildProcess] = []
        self.monitor = Monitor(self.watched, self.replace)

    def watched(self) -> list[ChildProcess]:
        return [child for child in self.children if child.asked_with is None and child.age and not child._exit.done()]

    async def replace(self, child_id: str, process: str) -> None:
        [child] = [child for child in self.children if child.spec.id == child_id]
        self.replaced.append((child_id, process, child.age))
        child.drain()

    async def start(
        self, target: str, limits: HealthLimits = QUICK, /, id: str = "child", **kwargs: Any
    ) -> ChildProcess:
        """A child that is ready, and watched."""
        spec = ChildSpec(
            id=id,
            target=f"tests.supervisor.targets:{target}",
            kwargs={"diary": str(self.diary), **kwargs},
            health=limits,
        )
        with redirected(1, self.stdout), redirected(2, self.stderr):
            child = ChildProcess(spec)
        self.children.append(child)
        assert await child.ready(), child.failure
        return child

    async def noted(self, event: str) -> dict[str, Any]:
        """Wait until a child has made this entry."""
        entries: list[dict[str, Any]] = await wait_until(lambda: targets.read(self.diary, event), message=event)
        return entries[0]

    def said(self) -> str:
        """The standard error of the children so far."""
        return self.stderr.read_text()

    async def has_said(self, text: str) -> str:
        await wait_until(lambda: text in self.said(), message=f"{text!r} on standard error")
        return self.said()


@pytest.fixture
async def ward(tmp_path: Path) -> AsyncIterator[Ward]:
    ward = Ward(tmp_path)
    watching = asyncio.create_task(ward.monitor.run())
    yield ward
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    for child in ward.children:
        child.kill()
        await ended(child)


async def ended(child: ChildProcess) -> ChildExit:
    return await asyncio.wait_for(child.exited(), 10)


def line_of(target: Callable[..., Any], text: str) -> str:
    """The line of `target` that contains `text`, as a stack shows it."""
    lines = Path(targets.__file__).read_text().splitlines()
    first = target.__code__.co_firstlineno
    number = next(number for number, line in enumerate(lines, 1) if number > first and text in line)
    return rf'File ".*targets.py", line {number} in {target.__name__}'


@pytest.mark.parametrize(
    ("target", "culprit"), [("blocked_in_python", "time.sleep(600)"), ("blocked_in_c", "re.match(")]
)
async def test_a_process_with_a_blocked_event_loop_is_killed_and_its_stacks_show_where(
    ward: Ward, target: str, culprit: str
) -> None:
    child = await ward.start(target)
    noted = await ward.noted("blocked")
    began = time.monotonic()
    exit = await ended(child)
    assert noted["pid"] == exit.pid
    assert 0.4 < time.monotonic() - began < 2.5
    assert (exit.signal, exit.reason, exit.asked) == ("SIGKILL", ExitReason.ABNORMAL, False)
    assert re.fullmatch(r"its event loop was blocked for 0\.[5-9] s", exit.why)
    said = ward.said()
    assert re.search(line_of(getattr(targets, target), culprit), said), said


async def test_a_blocked_child_also_writes_where_each_of_its_tasks_is_suspended(ward: Ward) -> None:
    """The tasks of a blocked loop are shown, down to the innermost call."""
    child = await ward.start("blocked_in_python")
    await ended(child)
    said = ward.said()
    tasks = said[said.index(f"asyncio tasks of {child.process} (pid {child.pid})") :]
    place = tasks[tasks.index("Task run-1:") :]
    assert place.index("in run_of_an_agent") < place.index("in tool_that_waits") < place.index("in wait")


async def test_a_child_that_beats_is_not_killed(ward: Ward) -> None:
    child = await ward.start("obedient", HealthLimits(blocked_after=0.3, hard_memory=4096 * MB))
    await asyncio.sleep(1.5)  # five times the allowed silence
    assert child.silence < 0.3
    assert not child._exit.done()


async def test_time_in_which_the_supervisor_did_not_run_is_not_silence(ward: Ward) -> None:
    """The supervisor does not run for a while, and reads no beats: here its own event loop is blocked."""
    child = await ward.start("obedient", HealthLimits(blocked_after=0.3))
    os.kill(child.pid, signal.SIGSTOP)  # so that no beat arrives
    time.sleep(1.5)  # noqa: ASYNC251  # this is the test
    os.kill(child.pid, signal.SIGCONT)
    await asyncio.sleep(0.6)
    assert not child._exit.done()
    assert child.silence < 0.3


async def test_a_child_beyond_its_hard_limit_of_memory_is_killed_at_once(ward: Ward) -> None:
    child = await ward.start("hungry", HealthLimits(hard_memory=200 * MB), megabytes=250)
    exit = await ended(child)
    assert (exit.signal, exit.reason, exit.asked) == ("SIGKILL", ExitReason.ABNORMAL, False)
    assert re.fullmatch(r"its memory was \d{3} MB, and hard_memory_mb is 200", exit.why)


async def test_a_child_beyond_its_soft_limit_of_memory_is_replaced(
    ward: Ward, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(health, "SETTLED_SECONDS", 1.5)
    limits = replace(QUICK, soft_memory=100 * MB, hard_memory=4096 * MB)
    modest = await ward.start("hungry", limits, id="modest", megabytes=1)
    hungry = await ward.start("hungry", limits, megabytes=150)
    exit = await ended(hungry)
    assert (exit.exitcode, exit.reason) == (0, ExitReason.SHUTDOWN)
    [(child_id, process, age)] = ward.replaced
    assert child_id == "child"
    assert age >= 1.5
    assert process == hungry.process
    assert re.search(rf"{process} will be replaced: its memory was \d{{3}} MB, and soft_memory_mb is 100", caplog.text)
    assert not modest._exit.done()


async def test_beats_carry_the_lag_and_what_the_child_measures(ward: Ward) -> None:
    """A broken gauge does not stop the beats."""
    child = await ward.start("with_gauges")
    await wait_until(lambda: "rss" in child.report())
    report = child.report()
    assert report["tasks"] == 7
    assert 0 <= report["lag"] < 1
    assert "broken" not in report
    assert "the gauge 'broken' has failed" in ward.said()
    assert 5 * MB < report["rss"] < 500 * MB
    assert 0 <= report["cpu"] < 250
    assert 3 <= report["open_files"] < 100
    assert report["descendants"] == 0


async def test_the_lag_grows_while_a_child_is_silent(ward: Ward) -> None:
    child = await ward.start("blocked_in_python", HealthLimits(blocked_after=30))
    await ward.noted("blocked")
    await wait_until(lambda: child.report()["lag"] > 0.5)
    await wait_until(lambda: child.report()["lag"] > 1.5)
    assert child.figures.report()["lag"] < 0.5  # the last beat does not include it


async def test_there_is_no_lag_between_two_beats(ward: Ward) -> None:
    """The monitor may have counted two whole rounds since the last beat."""
    child = await ward.start("obedient", HealthLimits())
    await wait_until(lambda: "lag" in child.report())
    child.silence = 2.0
    assert child.report()["lag"] < 0.5


async def test_the_processes_below_a_child_are_counted(ward: Ward) -> None:
    child = await ward.start("with_grandchild", HealthLimits())
    below = descendants()
    assert below[child.pid] == 1
    assert os.getpid() not in below  # only processes below this one
    child.measure(below)
    assert child.report()["descendants"] == 1


async def test_a_full_pipe_does_not_block_the_child(ward: Ward) -> None:
    """As when the supervisor is stopped: further beats are dropped, and complete ones arrive later."""
    child = await ward.start("talkative", HealthLimits(blocked_after=0.1), beats=60)  # 16 of them fill the pipe
    loop, reports = asyncio.get_running_loop(), child._reports.fileno()
    loop.remove_reader(reports)
    child.asked_with = signal.SIGTERM  # the monitor skips it

    def latest() -> float:
        return max(child.figures.gauges.values(), default=0)

    await ward.noted("has beaten")
    assert latest() < 60
    loop.add_reader(reports, child._on_report)
    await wait_until(lambda: latest() > 60, message="a beat from after the silence")


async def test_the_figures_of_a_process_that_has_ended(ward: Ward) -> None:
    child = await ward.start("with_gauges")
    child.kill()
    await ended(child)
    child.measure({})
    assert child.report().keys() <= {"lag", "tasks"}


async def test_on_sigusr1_a_child_writes_its_stacks_and_keeps_running(
    ward: Ward, caplog: pytest.LogCaptureFixture
) -> None:
    child = await ward.start("obedient", HealthLimits())
    child.dump()
    assert f"the stacks of {child.process} (pid {child.pid}) follow" in caplog.text
    said = await ward.has_said(f"--- end of the stacks of {child.process} (pid {child.pid}) ---\n")
    assert "Task tests.supervisor.targets:obedient:\n" in said
    assert "Thread 0x" in said
    assert said.index("most recent call first") < said.index(f"asyncio tasks of {child.process}")
    child.dump()
    await wait_until(lambda: ward.said().count(f"asyncio tasks of {child.process}") == 2)
    child.drain()
    assert (await ended(child)).exitcode == 0


async def test_a_child_ignores_sighup(ward: Ward) -> None:
    """Programs that its tools start do not ignore it: they have the default handlers."""
    child = await ward.start("with_grandchild")
    grandchild = psutil.Process((await ward.noted("started"))["grandchild"])
    os.kill(child.pid, signal.SIGHUP)
    await wait_until(lambda: child.report().get("rss"))
    grandchild.send_signal(signal.SIGHUP)
    await wait_until(lambda: grandchild.status() == psutil.STATUS_ZOMBIE, message="the end of the grandchild")
    child.drain()
    assert (await ended(child)).exitcode == 0


async def test_signals_are_blocked_until_the_child_handles_them(ward: Ward) -> None:
    spec = ChildSpec(id="child", target="tests.supervisor.targets:obedient", kwargs={"diary": str(ward.diary)})
    child = ChildProcess(spec)
    ward.children.append(child)
    os.kill(child.pid, signal.SIGHUP)
    os.kill(child.pid, signal.SIGUSR1)
    assert await child.ready()


async def test_the_stacks_of_a_crash_in_c_are_written(ward: Ward, caplog: pytest.LogCaptureFixture) -> None:
    child = await ward.start("crashes")
    exit = await ended(child)
    assert (exit.signal, exit.reason, exit.why) == ("SIGSEGV", ExitReason.ABNORMAL, "")
    said = ward.said()
    assert f"the stacks above are of {child.process} (pid {child.pid}), which has crashed: SIGSEGV" in caplog.text
    assert "Segmentation fault" in said
    assert re.search(line_of(targets.crashes, "ctypes.string_at"), said)


async def test_what_a_child_prints_carries_its_name(ward: Ward) -> None:
    child = await ward.start("prints")
    name = f"{child.process} | "
    assert ward.stdout.read_text() == f"{name}one line\n{name}begun\n"
    lines = ward.said().splitlines()
    assert lines[:2] == [f"{name}two", f"{name}lines"]
    assert any(line.startswith(name) and "UserWarning: a warning" in line for line in lines)
    [logged] = [line for line in lines if "a log line" in line]
    assert logged.count(child.process) == 1
    assert "written past Python" in lines


async def test_an_error_of_the_monitor_is_logged_and_it_keeps_watching(
    ward: Ward, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    quick = replace(QUICK, blocked_after=0.2)
    well = await ward.start("obedient", quick)
    blocked = await ward.start("blocked_in_python", quick, id="second")

    def broken(below: Mapping[int, int]) -> None:
        raise RuntimeError("no figures today")

    monkeypatch.setattr(well, "measure", broken)
    assert (await ended(blocked)).why.startswith("its event loop was blocked")
    assert "the health check of child-" in caplog.text
    assert "no figures today" in caplog.text
