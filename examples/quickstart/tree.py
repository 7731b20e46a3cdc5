"""The supervision tree of the demo: `python -m factorial.supervisor`, as an operator would start it."""

import asyncio
import re
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import psutil

__all__ = ["CONFIG", "Tree"]

CONFIG = Path(__file__).resolve().parents[2] / "supervisors" / "quickstart.toml"

_LOG_LINE = re.compile(r"\S+ \S+ \w+ +supervisor [\w.]+: (?P<message>.*)")
_OF_INTEREST = ("is ready", "ended by", "released")


class Tree:
    """The supervisor's process. `show` is called with its log messages that are of interest here."""

    def __init__(self, process: asyncio.subprocess.Process, show: Callable[[str], None]) -> None:
        self.process = process
        self._show = show
        self._last_lines: deque[str] = deque(maxlen=10)
        self._is_ready = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, show: Callable[[str], None]) -> "Tree":
        """Start it, and wait until all of its worker processes are ready."""
        show(f"python -m factorial.supervisor {CONFIG.parent.name}/{CONFIG.name}")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "factorial.supervisor", str(CONFIG), stderr=asyncio.subprocess.PIPE
        )
        tree = cls(process, show)
        ready = asyncio.create_task(tree._is_ready.wait())
        await asyncio.wait({ready, tree._reading}, return_when=asyncio.FIRST_COMPLETED)
        if not tree._is_ready.is_set():
            ready.cancel()
            raise SystemExit("the supervisor did not start:\n" + "\n".join(tree._last_lines))
        return tree

    async def stop(self) -> tuple[int, int]:
        """Ask it to stop gracefully. Returns its exit code, and how many of its processes are left."""
        if self.process.returncode is not None:
            return self.process.returncode, 0
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        exitcode = await self.process.wait()
        await self._reading
        _, left = await asyncio.to_thread(psutil.wait_procs, children, timeout=2)
        return exitcode, len(left)

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for raw in self.process.stderr:
            line = raw.decode(errors="replace").rstrip()
            self._last_lines.append(line)
            if log := _LOG_LINE.match(line):
                if any(part in log["message"] for part in _OF_INTEREST):
                    self._show(log["message"])
                if log["message"].endswith("children are ready"):
                    self._is_ready.set()
