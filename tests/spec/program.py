"""A system in processes of its own: the supervisor's command, or a user's program, in a directory of its own.

Its agents' model is the test's HTTP server (`provider`), which their processes find by their environment.
"""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import psutil

from tests.support import kill_session, session_members, wait_until

__all__ = ["AGENTS", "ROOT", "Program"]

ROOT = Path(__file__).resolve().parents[2]

AGENTS = '''
"""A user's module of agents: each answers with what its tool says of the process that it is executed in."""

import json
import os
import sys

from factorial import Agent, AgentContext, ExecutionContext, gpt_41


def whereabouts(execution_ctx: ExecutionContext) -> str:
    "Tell where this is executed."
    return json.dumps({
        "pid": os.getpid(), "parent": os.getppid(), "process": execution_ctx.process,
        "aiomultiprocess": "aiomultiprocess" in sys.modules,
    })


planner = Agent(name="planner", instructions="planner", model=gpt_41, tools=[whereabouts])
writer = Agent(name="writer", instructions="writer", model=gpt_41, tools=[whereabouts])
'''


class Program:
    """One command, started in `directory`, in a session of its own. Its log is what it writes to standard error."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process: asyncio.subprocess.Process | None = None
        self._log = directory / "log"
        (directory / "my_agents.py").write_text(AGENTS)

    @property
    def log(self) -> str:
        """All that it has written."""
        return self._log.read_text() if self._log.exists() else ""

    async def start(self, *command: str, children: int) -> None:
        """Start `python COMMAND`, and wait until so many worker processes are ready."""
        before = len(self.ready())
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, *command, cwd=self.directory, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        await self.has_ready(before + children)

    async def has_ready(self, count: int) -> None:
        """Wait until the log has so many processes that became ready, since the start."""
        await wait_until(
            lambda: len(self.ready()) >= count or (self.process and self.process.returncode is not None), 60,
            f"{count} processes that are ready",
        )  # fmt: skip
        assert len(self.ready()) >= count, self.log

    def ready(self) -> list[tuple[str, int]]:
        """Name and pid of each process that has got ready."""
        return [(name, int(pid)) for name, pid in re.findall(r"(\S+) \(pid (\d+)\) is ready", self.log)]

    async def drains(self, count: int) -> None:
        """Wait until so many worker processes have heard that they are to leave."""
        await wait_until(lambda: self.log.count("draining") >= count, 30, f"{count} processes that drain")

    def members(self) -> list[psutil.Process]:
        """The living processes of its session, the supervisor included."""
        assert self.process is not None
        return session_members(self.process.pid)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it, and give its exit code when it has ended and has left nothing behind."""
        assert self.process is not None
        self.process.send_signal(number)
        code = await asyncio.wait_for(self.process.wait(), 60)
        await wait_until(lambda: not self.members(), 20, "no process left")
        return code

    async def clean_up(self) -> None:
        """Leave nothing behind, whatever a test has done."""
        if self.process is not None:
            kill_session(self.process.pid)
            await self.process.wait()
