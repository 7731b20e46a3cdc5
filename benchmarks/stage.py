"""The parts of each measurement: a real server, a worker in this process, a client with a connection of its own."""

import asyncio
import logging
import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from factorial import AgentContext, AgentWorkerConfig, BaseAgent, MaintenanceWorkerConfig, RedisConfig
from factorial.actors.worker_process import WorkerProcess, prepare
from factorial.mailbox import Namespace
from factorial.mailbox.embedded.share import resolve
from factorial.orchestrator import Orchestrator

__all__ = ["OWNER", "Spent", "Stage", "Worker", "enqueue_many", "eventually", "stage"]

OWNER = "benchmark"
POLICY = AgentWorkerConfig(heartbeat_interval=60)
"""A worker's defaults, with rare heartbeats: they would be counted with the tasks' commands."""
MAINTENANCE = MaintenanceWorkerConfig(interval=600)


@dataclass(frozen=True)
class Spent:
    """The traffic of a connection."""

    commands: int = 0
    writes: int = 0
    bytes_out: int = 0
    bytes_in: int = 0

    def __sub__(self, before: "Spent") -> "Spent":
        return Spent(
            self.commands - before.commands,
            self.writes - before.writes,
            self.bytes_out - before.bytes_out,
            self.bytes_in - before.bytes_in,
        )


@dataclass
class Worker:
    """A worker in this process. The connection of its namespace counts commands, writes and bytes."""

    mailbox: Namespace
    observer: Redis
    """A separate connection for the measurement, whose commands are not counted with the worker's."""
    process: str = field(default_factory=lambda: f"bench-{uuid.uuid4().hex[:8]}")
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: asyncio.Event = field(default_factory=asyncio.Event)

    def ready(self) -> None:
        """Part of the worker's lifeline. Unused here."""

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        """Part of the worker's lifeline. Unused here."""

    async def holds_nothing(self) -> bool:
        """Whether the worker holds no task."""
        return bool(await self.observer.scard(self.mailbox.keys.held(self.process)) == 0)

    @property
    def spent(self) -> Spent:
        """The traffic of the worker's connection so far."""
        stats = self.mailbox.connection.stats
        return Spent(stats.commands, stats.writes, stats.bytes_out, stats.bytes_in)


@dataclass
class Stage:
    """One server. Each measurement has its own namespace on it."""

    url: str

    def redis(self) -> RedisConfig:
        """The configuration of a new namespace."""
        return RedisConfig(url=self.url, namespace=f"bench-{uuid.uuid4().hex[:12]}")

    @asynccontextmanager
    async def client(self, redis: RedisConfig) -> AsyncIterator[Orchestrator]:
        """A client that enqueues tasks."""
        async with Orchestrator(redis_url=redis.url, namespace=redis.namespace) as orchestrator:
            yield orchestrator

    @asynccontextmanager
    async def worker(self, agent: BaseAgent[Any], redis: RedisConfig) -> AsyncIterator[Worker]:
        """A worker of `agent`. Inside the `with` block it has claimed nothing yet, so measurements may start there."""
        mailbox = await Namespace.open(redis)
        try:
            async with Redis.from_url(redis.url) as observer, asyncio.TaskGroup() as group:
                worker = Worker(mailbox, observer)
                runner = WorkerProcess(agent, mailbox, worker.process, POLICY, MAINTENANCE)
                group.create_task(runner.run(worker, grace=5))  # if it fails, so does the measurement
                yield worker
                worker.draining.set()
        finally:
            await mailbox.close()


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """The server of `REDIS_URL`, or an embedded one. What the measurements stored is removed at the end."""
    logging.getLogger("factorial").setLevel(logging.ERROR)
    prepare()
    with tempfile.TemporaryDirectory(prefix="factorial-benchmark-") as directory:
        url, server = await asyncio.to_thread(resolve, os.environ.get("REDIS_URL") or f"embedded:{directory}")
        try:
            yield Stage(url)
        finally:
            if server is not None:
                await asyncio.to_thread(server.release)
            else:
                await _clean_up(url)


async def _clean_up(url: str) -> None:
    async with Redis.from_url(url) as redis:
        async for key in redis.scan_iter(match="{bench-*", count=1000):
            await redis.unlink(key)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Poll until `condition` holds. Pauses leave the processor to the worker."""
    while not await condition():  # noqa: ASYNC110  # the server does not notify
        await asyncio.sleep(0.002)


async def enqueue_many(client: Orchestrator, agent: BaseAgent[Any], count: int) -> None:
    """Enqueue `count` tasks at once."""
    tasks = (client.enqueue_task(agent, owner_id=OWNER, payload=AgentContext(query="nothing")) for _ in range(count))
    await asyncio.gather(*tasks)
