"""Supervisors in separate processes, and a check that none of their processes is left."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.supervisor.targets import read
from tests.support import kill_session, session_members, wait_until

ROOT = Path(__file__).parent.parent.parent


class Host:
    """A supervisor that runs `host.py` in its own process group, as a shell starts it."""

    def __init__(self, diary: Path) -> None:
        self.diary = diary
        self.stderr = diary.with_suffix(".err")
        self.process: asyncio.subprocess.Process

    async def start(self, flags: dict[str, Any], *children: tuple[str, dict[str, Any]]) -> None:
        with self.stderr.open("wb") as stderr:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, str(Path(__file__).with_name("host.py")),
                str(self.diary), json.dumps({"intensity": 20, **flags}), json.dumps(children),
                stderr=stderr, start_new_session=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def noted(self, event: str) -> list[dict[str, Any]]:
        return read(self.diary, event)

    async def has(self, event: str, count: int = 1, timeout: float = 10.0) -> list[dict[str, Any]]:
        """Wait until the diary has `count` events of this kind."""
        await wait_until(
            lambda: len(self.noted(event)) >= count or self.process.returncode is not None,
            timeout,
            f"{count} x {event!r} in {self.diary}",
        )
        assert len(self.noted(event)) >= count, self.stderr.read_text()
        return self.noted(event)

    async def is_ready(self) -> None:
        await wait_until(lambda: "root is up" in self.stderr.read_text(), message="the start of all children")

    def signal_group(self, number: signal.Signals) -> None:
        """Signal the process group, as a terminal does for a foreground job."""
        os.killpg(self.process.pid, number)

    def members(self) -> list[psutil.Process]:
        """The living processes that were started for this supervisor."""
        return session_members(self.process.pid)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    """A supervisor; the test starts it with `await host.start(flags, (target, spec), ...)`."""
    host = Host(tmp_path / "diary")
    yield host
    try:
        # Multiprocessing's tracker sees the end of the supervisor, and ends a moment later.
        await wait_until(lambda: not host.members(), message="no process left")
    finally:
        kill_session(host.process.pid)
        await host.process.wait()


@pytest.fixture
def gone(host: Host) -> Callable[[float], Awaitable[None]]:
    """Wait until no process of the supervisor is left."""

    async def wait(timeout: float) -> None:
        await wait_until(lambda: not host.members(), timeout, "no process of the supervisor")

    return wait
