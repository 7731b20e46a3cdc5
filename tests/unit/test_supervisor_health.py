"""Health: verdicts, the monitor, figures of the system, named lines. Fake: the monitored children and the clock."""

import asyncio
import io
import logging
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import cast

import psutil
import pytest

from factorial.supervisor.process import monitor, usage
from factorial.supervisor.process.monitor import Monitor
from factorial.supervisor.rules.health import (
    SETTLED_SECONDS,
    Figures,
    Kill,
    Replace,
    Verdict,
    Well,
    judge,
    pace,
)
from factorial.supervisor.rules.spec import ChildSpec, HealthLimits
from factorial.telemetry.streams import NamedLines
from tests.support import wait_until

MB = 1024 * 1024
LIMITS = HealthLimits(blocked_after=15, soft_memory=500 * MB, hard_memory=1000 * MB)
SOFT = Replace("its memory was 600 MB, and soft_memory_mb is 500")
HARD = Kill("its memory was 1001 MB, and hard_memory_mb is 1000")


@pytest.mark.parametrize(
    ("megabytes", "silence", "age", "verdict"),
    [
        (100, 0, 3600, Well()),
        (None, 0, 3600, Well()),
        (100, 14.9, 3600, Well()),
        (100, 15.0, 3600, Kill("its event loop was blocked for 15.0 s", stacks=True)),
        (500, 0, 3600, Well()),
        (600, 0, 3600, SOFT),
        (600, 0, SETTLED_SECONDS, SOFT),
        (600, 0, SETTLED_SECONDS - 0.1, Well()),
        (600, 20, 3600, Kill("its event loop was blocked for 20.0 s", stacks=True)),
        (1001, 0, 0, HARD),
        (1001, 20, 3600, HARD),
    ],
)
def test_the_verdict(megabytes: int | None, silence: float, age: float, verdict: Verdict) -> None:
    figures = Figures(rss=None if megabytes is None else megabytes * MB)
    assert judge(LIMITS, figures, silence, age) == verdict


def test_without_limits_memory_does_not_matter() -> None:
    assert judge(HealthLimits(), Figures(rss=10**15), 0, 3600) == Well()


def test_beats_are_often_enough_for_the_limit() -> None:
    assert pace(HealthLimits(blocked_after=15)) == 1.0
    assert pace(HealthLimits(blocked_after=1)) == 0.2


def test_a_report_holds_what_is_known() -> None:
    assert Figures().report() == {}
    figures = Figures({"lag": 0.1, "tasks": 3}, rss=5, cpu=0.0, open_files=None, descendants=0)
    assert figures.report() == {"lag": 0.1, "tasks": 3, "rss": 5, "cpu": 0.0, "descendants": 0}


# -- the monitor


class Patient:
    """A simulated child. The test sets its figures."""

    process, age, silence, figures = "child-1", 3600.0, 0.0, Figures()

    def __init__(self, id: str = "child", **limits: float) -> None:
        self.spec = ChildSpec(id=id, target="m:f", health=HealthLimits(**limits))  # type: ignore[arg-type]
        self.process = f"{id}-1"
        self.story: list[str] = []

    def measure(self, below: Mapping[int, int]) -> None:
        self.story.append("looked at")

    def dump(self) -> None:
        self.story.append("dump")

    def kill(self, why: str = "") -> None:
        self.story.append(f"kill: {why}")


class Practice:
    """A monitor, and the replacements that it requested."""

    def __init__(self) -> None:
        self.patients: list[Patient] = []
        self.replaced: list[str] = []
        self.replacing = asyncio.Event()
        self.replacing.set()
        self.now = 0.0
        self.monitor = Monitor(lambda: self.patients, self.replace, lambda: self.now)

    async def replace(self, child_id: str, process: str) -> None:
        self.replaced.append(child_id)
        await self.replacing.wait()
        if child_id == "incurable":
            raise RuntimeError("its successor could not be started")


@pytest.fixture
async def practice(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Practice]:
    """A running monitor with short rounds. Its clock is simulated, and only the test advances it."""
    monkeypatch.setattr(monitor, "PACE", 0.01)
    practice = Practice()
    task = asyncio.create_task(practice.monitor.run())
    yield practice
    assert not task.done(), task
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def rounds(patient: Patient, number: int = 3) -> None:
    """Wait for `number` further rounds of the monitor."""
    seen = patient.story.count("looked at") + number
    await wait_until(lambda: patient.story.count("looked at") >= seen)


async def test_silence_is_counted_in_rounds_of_at_most_one_beat(practice: Practice) -> None:
    """A long sleep of the supervisor itself does not count as silence of its children."""
    patient = Patient(blocked_after=15)
    practice.patients.append(patient)
    practice.now += 1_000_000
    await rounds(patient)
    assert patient.silence == 1.0
    practice.now += 0.5
    await rounds(patient)
    assert patient.silence == 1.5


async def test_a_blocked_process_writes_its_stacks_and_is_killed_once(
    practice: Practice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "_SECONDS_TO_WRITE_STACKS", 0.1)
    blocked, well = Patient("blocked"), Patient("well")
    blocked.silence = 16.0
    practice.patients += [blocked, well]
    await rounds(well)
    assert blocked.story == ["looked at", "dump"]
    await wait_until(lambda: len(blocked.story) > 2)
    await rounds(well)  # its exit may take a moment
    assert blocked.story == ["looked at", "dump", "kill: its event loop was blocked for 16.0 s"]


async def test_children_are_replaced_one_at_a_time(practice: Practice) -> None:
    one, two = Patient("one", soft_memory=1), Patient("two", soft_memory=1)
    one.figures = two.figures = Figures(rss=2)
    practice.patients += [one, two]
    practice.replacing.clear()
    await rounds(two)
    assert practice.replaced == ["one"]
    practice.patients.remove(one)
    practice.replacing.set()
    await wait_until(lambda: practice.replaced == ["one", "two"])


async def test_a_failed_replacement_is_followed_by_a_pause(
    practice: Practice, caplog: pytest.LogCaptureFixture
) -> None:
    patient = Patient("incurable", soft_memory=1)
    patient.figures = Figures(rss=2)
    practice.patients.append(patient)
    await wait_until(lambda: "its successor could not be started" in caplog.text)
    await rounds(patient)
    assert practice.replaced == ["incurable"]
    practice.now += 61
    await wait_until(lambda: len(practice.replaced) == 2)


def heavy(number: int, age: float, limit: int = 1) -> Patient:
    """An incarnation of a child that is above its soft memory limit."""
    patient = Patient(soft_memory=limit)
    patient.process, patient.age, patient.figures = f"child-{number}", age, Figures(rss=limit + 1)
    return patient


async def test_a_limit_that_is_too_low_is_logged_once_and_replacements_become_rare(
    practice: Practice, caplog: pytest.LogCaptureFixture
) -> None:
    warning = "child is above soft_memory_mb from its start: raise the limit (its memory was 0 MB"
    practice.patients = [heavy(0, age=11)]
    await wait_until(lambda: practice.replaced == ["child"])
    assert "child-0 will be replaced: its memory was" in caplog.text
    assert warning not in caplog.text
    for number, seconds in enumerate([60, 120, 240, 480, 960, 1920, 3600, 3600], 1):
        successor = heavy(number, age=11)
        practice.patients = [successor]
        await rounds(successor)
        assert caplog.text.count(warning) == 1
        successor.age += seconds
        practice.now += seconds - 1
        await rounds(successor)
        assert len(practice.replaced) == number
        practice.now += 1
        await wait_until(lambda: len(practice.replaced) > number)  # noqa: B023  # it is awaited here


async def test_a_finding_during_the_drain_of_the_predecessor_is_kept(
    practice: Practice, caplog: pytest.LogCaptureFixture
) -> None:
    practice.replacing.clear()
    practice.patients = [heavy(0, age=3600)]
    await wait_until(lambda: practice.replaced)
    successor = heavy(1, age=11)
    practice.patients = [successor]
    await rounds(successor)
    successor.age = 300
    practice.replacing.set()
    await wait_until(lambda: "from its start" in caplog.text)


async def test_a_child_that_grows_is_replaced_each_time_but_not_within_a_minute(
    practice: Practice, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        patient = heavy(number, age=45)
        practice.patients = [patient]
        if number:
            practice.now += 59
            await rounds(patient)
            assert len(practice.replaced) == number
            practice.now += 1
        await wait_until(lambda: len(practice.replaced) > number)  # noqa: B023  # it is awaited here
        practice.patients = []
    assert "from its start" not in caplog.text


async def test_the_pause_is_short_again_once_a_child_starts_below_its_limit(practice: Practice) -> None:
    for number, age in enumerate([11, 11, 11, 300]):
        practice.patients = [heavy(number, age)]
        await wait_until(lambda: len(practice.replaced) > number)  # noqa: B023  # it is awaited here
        practice.patients = []
        practice.now += 120 if number < 2 else 60  # it would be 240 otherwise


async def test_a_new_limit_resets_the_findings(practice: Practice, caplog: pytest.LogCaptureFixture) -> None:
    for limit in (1, 2):
        practice.patients = [heavy(2 * limit, age=11, limit=limit)]
        await wait_until(lambda: len(practice.replaced) == limit)  # noqa: B023  # it is awaited here
        practice.patients = [heavy(2 * limit + 1, age=11, limit=limit)]
        await wait_until(lambda: caplog.text.count("from its start") == limit)  # noqa: B023


async def test_an_error_in_a_round_does_not_end_the_monitor(
    practice: Practice, caplog: pytest.LogCaptureFixture
) -> None:
    practice.patients = None  # type: ignore[assignment]  # a list that cannot be read
    await wait_until(lambda: "the health check of the children failed and will be repeated" in caplog.text)
    practice.patients = [Patient()]
    await rounds(practice.patients[0])
    assert all(record.levelno >= logging.ERROR for record in caplog.records if record.name == monitor.__name__)


# -- what the operating system says


async def test_the_usage_of_a_process_that_is_gone() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    known = psutil.Process(process.pid)
    alive = usage.usage(known)
    assert alive.rss is not None
    assert alive.cpu is not None
    assert alive.open_files is not None
    process.kill()
    await process.wait()
    assert usage.usage(known) == usage.Usage()


def test_kills_for_memory_are_those_of_our_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "_control_group", lambda: tmp_path)
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 4\noom_kill 3\noom_group_kill 0\n")
    assert usage.kills_for_memory() == 3


@pytest.mark.skipif(not Path("/proc/vmstat").exists(), reason="there is no /proc")
def test_kills_for_memory_are_those_of_the_machine_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "_control_group", lambda: tmp_path)
    count = usage.kills_for_memory()
    assert count is not None
    assert count >= 0


def test_without_a_counter_there_is_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "Path", lambda name: tmp_path / "nothing")
    assert usage.kills_for_memory() is None


# -- named lines


class Terminal(io.StringIO):
    encoding, errors = "utf-8", "strict"

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 77


def test_each_line_has_the_name_and_is_written_at_once() -> None:
    real = io.StringIO()
    lines = NamedLines(real, "w")
    print("a", 1, file=lines)
    assert real.getvalue() == "w | a 1\n"
    print("b\n\nc", end="", file=lines)
    assert real.getvalue() == "w | a 1\nw | b\nw | \n"
    lines.flush()
    lines.flush()
    assert real.getvalue() == "w | a 1\nw | b\nw | \nw | c\n"
    lines.writelines(["d\n", "e\n"])
    assert real.getvalue().endswith("w | d\nw | e\n")


def test_lines_of_threads_do_not_mix() -> None:
    real = io.StringIO()
    lines = NamedLines(real, "w")
    together = threading.Barrier(4)

    def speak(word: str) -> None:
        together.wait()
        for _ in range(300):
            print(word, word, word, sep="-", file=lines)

    print("begun", end=" ", file=lines)
    threads = [threading.Thread(target=speak, args=(word,)) for word in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("ended", file=lines)
    *others, mine = real.getvalue().splitlines()
    assert mine == "w | begun ended"
    assert Counter(others) == {f"w | {word}-{word}-{word}": 300 for word in "abcd"}


def test_everything_else_is_as_in_the_underlying_stream() -> None:
    real = Terminal()
    lines = NamedLines(real, "w")
    assert lines.isatty()
    assert lines.writable()
    assert (lines.fileno(), lines.encoding, lines.errors) == (77, "utf-8", "strict")
    assert lines.write("12\n4") == 4
    assert lines.getvalue() == "w | 12\n"
    raw = io.BytesIO()
    text = io.TextIOWrapper(io.BufferedWriter(cast(io.RawIOBase, raw)), encoding="utf-8")
    lines = NamedLines(text, "w")
    print("at once", file=lines)
    assert raw.getvalue() == b"w | at once\n"
    lines.buffer.write(b"as it is")
    lines.buffer.flush()
    assert raw.getvalue() == b"w | at once\nas it is"
