"""A test run that is ended by a signal leaves no process behind: no server, no daemon, no supervisor, no worker.

Real: the test run, and all that its test has started.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import wait_until

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tests/guard.py needs Linux's subreapers")


@pytest.mark.parametrize(
    ("number", "options"),
    [
        (signal.SIGTERM, ["-n", "1"]),
        (signal.SIGINT, ["-n", "1"]),
        (signal.SIGKILL, ["-p", "no:xdist"]),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else " ".join(value),
)
async def test_no_process_survives(tmp_path: Path, number: signal.Signals, options: list[str]) -> None:
    report, log = tmp_path / "pids", tmp_path / "log"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    with log.open("wb") as output:
        run = subprocess.Popen(  # noqa: ASYNC220  # it does not wait
            [sys.executable, "-m", "pytest", *options, "tests/chaos/endless.py"],
            cwd=ROOT, env={**kept, "ENDLESS_PIDS": str(report)}, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    started: list[psutil.Process] = []
    try:
        await wait_until(lambda: report.exists() or run.poll() is not None, message="the start of all processes")
        assert run.poll() is None, log.read_text()
        started = [psutil.Process(int(pid)) for pid in report.read_text().split()]
        started += psutil.Process(run.pid).children(recursive=True)
        names = " ".join(" ".join(process.cmdline()) for process in started)
        assert all(name in names for name in ("valkey-server", "factorial.supervisor", "spawn_main")), names
        run.send_signal(number)
        await wait_until(lambda: run.poll() is not None, message="the end of the test run")
        if number != signal.SIGKILL:  # a killed process cannot wait for the others
            assert [process for process in started if is_alive(process)] == [], log.read_text()
        await wait_until(lambda: not any(map(is_alive, started)), message="the end of all processes")
    finally:
        for process in started:
            if is_alive(process):
                process.kill()
        run.kill()
        run.wait()
    assert run.returncode == (2 if number == signal.SIGINT else -number)


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; a process that has ended and whose parent has not noticed does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
