"""The README's snippets, run as they are written, in a folder that holds nothing but the documents' files.

Real: the processes, the supervisor, the embedded Valkey, its data on disk, the kill. Not real: the model, which plays
the README's own script.
"""

import os
import re
import signal
from pathlib import Path

from tests.examples.conftest import System
from tests.examples.documents import BLOCKS, run, shown, start
from tests.support import wait_until


def test_the_readme_has_the_files_that_it_speaks_of() -> None:
    files = [block.file for block in BLOCKS if block.document == "README.md" and block.file]
    assert files == ["weather.py", "inline.py", "system.toml", "ask.py"]


def test_inline(folder: Path) -> None:
    assert run(folder, "inline.py") == "Take a coat: 4 degrees in Oslo.\n"


async def test_the_system_answers_as_shown(folder: Path, system: System) -> None:
    run(folder, "-m", "factorial.supervisor", "system.toml", "--check")
    async with system("-m", "factorial.supervisor", "system.toml"):
        assert run(folder, "ask.py") == shown("README.md")[0]


async def test_a_killed_process_is_replaced_and_its_task_completes_as_shown(folder: Path, system: System) -> None:
    """As the README says, but for the delay, which is shorter here."""
    weather = (folder / "weather.py").read_text()
    assert weather.count("delay=0.5") == 1
    (folder / "weather.py").write_text(weather.replace("delay=0.5", "delay=2"))
    [uncrashed] = shown("README.md")
    seen_before, _, rest = uncrashed.rpartition("progress_update_completion_completed\n")
    again = "task_reclaimed\nprogress_update_run_turn_started\nprogress_update_completion_started\n"
    printed = folder / "printed"
    async with system("-m", "factorial.supervisor", "system.toml") as log:
        client = start(folder, "ask.py", output=printed)
        try:
            await wait_until(lambda: printed.read_text() == seen_before, timeout=30, message="the second model call")
            [process] = re.findall(r"(\S+) factorial\.task: .* started at", log.read_text())
            [pid] = re.findall(rf"{process} \(pid (\d+)\) is ready", log.read_text())
            os.kill(int(pid), signal.SIGKILL)
            assert client.wait(timeout=30) == 0
        finally:
            client.kill()
            client.wait()
        assert printed.read_text() == f"{seen_before}{again}progress_update_completion_completed\n{rest}"
        [excerpt] = shown("README.md", "log")
        expected = set(anonymous(excerpt))
        await wait_until(lambda: expected <= since_the_kill(log), timeout=30, message="the log lines")


def since_the_kill(log: Path) -> set[str]:
    lines = log.read_text().splitlines()
    first = next((number for number, line in enumerate(lines) if "SIGKILL" in line), len(lines))
    return set(anonymous("\n".join(lines[first:])))


def anonymous(log: str) -> list[str]:
    """Log lines without times, ids and loggers; processes are numbered in the order in which they are named."""
    processes: list[str] = []

    def number(found: re.Match[str]) -> str:
        if found[0] not in processes:
            processes.append(found[0])
        return f"process{processes.index(found[0])}"

    log = re.sub(r"^\d{4}-\d\d-\d\d \S+ ", "", log, flags=re.MULTILINE)
    log = re.sub(r" factorial\.[\w.]+:", "", log)
    log = re.sub(r"weather\.\d-[0-9a-f]{6}", number, log)
    log = re.sub(r"\b[0-9a-f]{16,32}\b", "ID", log)
    log = re.sub(r"pid \d+", "pid N", log)
    return re.sub(r"[\d.]+ s$", "N s", log, flags=re.MULTILINE).splitlines()
