"""A supervisor's control mailbox on a real Valkey, with fake operations that record the calls."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from factorial.errors import ConfigError, SupervisionError
from factorial.mailbox import Namespace
from factorial.supervisor.service.orders import take_orders

__all__ = ["FakeOperations", "serve"]


class FakeOperations:
    """A system of one runner, `weather`, with one process. Fake: nothing runs.

    The target `slow` takes until `finish` is set; `resting` is one with nothing to do; `bug` is an operation that fails
    as it should not.
    """

    def __init__(self, name: str = "a") -> None:
        self.name = name
        self.asked: list[str] = []
        self.state = "running"
        self.finish = asyncio.Event()
        self.stopped = asyncio.Event()
        self.fails_to_report = False
        self.changed = asyncio.Event()
        self.turn = asyncio.Lock()

    def report(self) -> dict[str, Any]:
        if self.fails_to_report:
            raise KeyError("a bug in the report")
        worker = {
            "id": "weather.1", "type": "worker", "state": self.state, "process": "weather.1-3fa9c2", "pid": 12,
            "uptime": 65.0, "restarts": 0, "last_exit": None, "tasks": 3, "rss": 50_000_000,
        }  # fmt: skip
        runner = {
            "id": "weather", "type": "supervisor", "state": "running", "strategy": "one_for_one", "restarts": 0,
            "intensity": 5, "period": 60.0, "last_exit": None, "children": [worker],
        }  # fmt: skip
        tree = {**runner, "id": "system", "children": [runner]}
        return {
            "supervisor": self.name, "host": "h", "pid": 11, "version": "0.3.0", "config": None, "started_at": 1.7e9,
            "uptime": 66.0, "state": "running", "tree": tree,
        }  # fmt: skip

    async def drain(self, target: str) -> str:
        return await self._done("drain", target, "drained")

    async def resume(self, target: str) -> str:
        return await self._done("resume", target, "running")

    async def restart(self, target: str) -> str:
        return await self._done("restart", target, "running")

    async def scale(self, runner: str, processes: int) -> str:
        return await self._done("scale", runner, "running", str(processes))

    async def stop(self, now: bool) -> str:
        self.stopped.set()
        return await self._done("stop", "", "draining", "now" if now else "gracefully")

    async def _done(self, verb: str, target: str, state: str, more: str = "") -> str:
        words = " ".join(word for word in (verb, target, more) if word)
        self.asked.append(words)
        if target == "slow":
            await self.finish.wait()
        if target == "bug":
            raise ZeroDivisionError("one of ours")
        if target == "nowhere":
            raise ConfigError("there is no 'nowhere' here; there are: weather, weather.1")
        if target == "resting":
            raise SupervisionError("drained: resting. There is nothing to restart; resume it first")
        self.state = state
        return f"done: {words}"


@contextlib.asynccontextmanager
async def serve(mailbox: Namespace, operations: FakeOperations) -> AsyncIterator["asyncio.Task[None]"]:
    """Take orders, and end in the orderly way on a stop, or when the test is done."""
    taking = asyncio.create_task(take_orders(operations, mailbox, operations.name))

    async def end() -> None:
        await operations.stopped.wait()
        taking.cancel()

    ending = asyncio.create_task(end())
    try:
        yield taking
    finally:
        ending.cancel()
        taking.cancel()
        await asyncio.wait([taking, ending])
