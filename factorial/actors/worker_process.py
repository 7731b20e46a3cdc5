"""One process of a runner: the agent, its worker actors, and what they need to live.

    heartbeat      the lease                        maintenance    reclaiming, queueing, removal
    workers        runs, turn by turn               control        wake tokens and signals
    inventory      whether process and server agree on what is held

Started by the supervisor through `run_process`, and in the same process by the orchestrator for agents that no other
process could import.
"""

import asyncio
import gc
import importlib
import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from factorial.actors.actor import Actor
from factorial.actors.control import Control
from factorial.actors.durable_host import DurableHost, Workplace
from factorial.actors.heartbeat import Heartbeat
from factorial.actors.inventory import Inventory
from factorial.actors.maintenance import Maintenance
from factorial.actors.worker import Worker
from factorial.agent.agent import BaseAgent
from factorial.agent.load import load_agent
from factorial.config import (
    AgentWorkerConfig,
    EventsConfig,
    MaintenanceWorkerConfig,
    MetricsTimelineConfig,
    RedisConfig,
    RunnerConfig,
)
from factorial.config.validated import from_mapping
from factorial.errors import MailboxError
from factorial.mailbox import Namespace
from factorial.mailbox.operations.lease import Cause
from factorial.mailbox.transport.blocking import BlockingConnection
from factorial.telemetry.task_log import TaskFields, TaskLog

__all__ = ["Lifeline", "WorkerProcess", "prepare", "run_process"]

_logger = logging.getLogger(__name__)

_OBJECTS_PER_COLLECTION = 20_000
_LAST_COMMITS = 3.0
"""Seconds for the last commits after every run was released; less if the grace is short."""
_LAST_WORDS = 1.5
"""Seconds to remove the lease; less if the grace is short."""


class Lifeline(Protocol):
    """What ties the process to its supervisor."""

    @property
    def process(self) -> str:
        """The name of this incarnation of the process."""

    @property
    def draining(self) -> asyncio.Event:
        """Set when the process is to drain: claim nothing more, and release each run at its next step boundary."""

    @property
    def leaving(self) -> asyncio.Event:
        """Set when the process is to release everything now."""

    def ready(self) -> None:
        """Report that the process works."""

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        """Report what `read` returns to the supervisor, regularly."""


async def run_process(
    lifeline: Lifeline,
    *,
    runner: Mapping[str, Any],
    redis: Mapping[str, Any],
    events: Mapping[str, Any],
    metrics: Mapping[str, Any],
    grace: float,
) -> None:
    """Run a worker process, with settings as plain data, until the lifeline says that it is to end."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(TaskFields())
    config = from_mapping(RunnerConfig, runner)
    agent = load_agent(config.agent)
    prepare()
    namespace = await Namespace.open(
        from_mapping(RedisConfig, redis),
        from_mapping(EventsConfig, events),
        from_mapping(MetricsTimelineConfig, metrics),
        patient=True,
    )
    try:
        await WorkerProcess(agent, namespace, lifeline.process, config.worker, config.maintenance).run(lifeline, grace)
    finally:
        await namespace.close()


def prepare() -> None:
    """Do in advance what would delay the first run: import the types of the model client.

    The garbage collector ignores what is imported so far, and runs less often: otherwise every wave of runs would
    trigger it, and what a run leaves behind is freed without it.
    """
    importlib.import_module("openai.types.chat")
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_PER_COLLECTION)


class WorkerProcess:
    """The actors of one process, and the order in which they start and stop."""

    def __init__(
        self,
        agent: BaseAgent[Any],
        namespace: Namespace,
        process: str,
        policy: AgentWorkerConfig,
        maintenance: MaintenanceWorkerConfig,
    ) -> None:
        self._agent = agent
        self._namespace = namespace
        self._process = process
        self._policy = policy
        scripts = namespace.scripts
        about = {"host": socket.gethostname(), "pid": os.getpid(), "agent": agent.name}
        self._heartbeat = Heartbeat(scripts, process, policy, about, self._on_registered)
        self._inventory = Inventory(scripts, process, agent.name, 2 * policy.heartbeat_interval, self._hosts)
        self._maintenance = [
            Maintenance(f"maintenance-{number}", scripts, agent.name, maintenance)
            for number in range(1, maintenance.workers + 1)
        ]
        workplace = Workplace(agent, scripts, process, policy)
        self._workers = [Worker(f"worker-{number}", workplace, self) for number in range(1, policy.workers + 1)]
        self._control: Control | None = None

    async def run(self, lifeline: Lifeline, grace: float) -> None:
        """Work until `lifeline.draining`; then release the runs within `grace` seconds."""
        blocking = await BlockingConnection.open(self._namespace.redis)
        self._control = Control(self._namespace.scripts, blocking, self._process, self._agent.name, self._workers)
        cause = Cause.CRASHED  # a run that is executed here may have caused the error that ended an actor
        try:
            await self._heartbeat.register()
            async with asyncio.TaskGroup() as actors:
                serving: list[Actor[Any]] = [*self._workers, *self._maintenance, self._inventory]
                working = [actors.create_task(actor.serve(), name=actor.name) for actor in serving]
                beating = actors.create_task(self._heartbeat.serve(), name="heartbeat")
                listening = actors.create_task(self._control.serve(), name="control")
                self._control.send_for_work()
                lifeline.gauge("tasks", self._in_flight)
                lifeline.ready()
                await lifeline.draining.wait()
                cause = Cause.LEFT
                await self._release_all(lifeline, grace)
                for task in (listening, *working, beating):
                    task.cancel()
        finally:
            self._control.close()
            await blocking.close()
            await self._leave(cause, min(_LAST_WORDS, grace / 10))

    async def _release_all(self, lifeline: Lifeline, grace: float) -> None:
        """Release every run: at a step boundary if there is time, else at once."""
        _logger.info("draining: %d tasks in flight", self._in_flight())
        for worker in self._workers:
            worker.drain()
        in_time = asyncio.create_task(self._settled(grace), name="drain in time")
        leaving = asyncio.create_task(lifeline.leaving.wait(), name="wait for the request to leave")
        await asyncio.wait({in_time, leaving}, return_when=asyncio.FIRST_COMPLETED)
        in_time.cancel()
        leaving.cancel()
        for worker in self._workers:
            worker.release_all()
        await self._settled(min(_LAST_COMMITS, grace / 6))

    def _hosts(self) -> dict[str, DurableHost]:
        return {task_id: one for worker in self._workers for task_id, one in worker.hosts.items()}

    def _in_flight(self) -> int:
        return sum(len(worker.hosts) for worker in self._workers)

    async def _settled(self, seconds: float) -> bool:
        return all(await asyncio.gather(*(worker.settle(seconds) for worker in self._workers)))

    async def _leave(self, cause: Cause, seconds: float) -> None:
        """Remove the lease, so that other processes go on at once with what is still held."""
        try:
            async with asyncio.timeout(seconds):
                taken = await self._namespace.reclaim_process(self._process, cause)
        except (MailboxError, TimeoutError) as unreachable:
            _logger.warning("the lease of %s could not be removed, and will expire: %s", self._process, unreachable)
            return
        for task_id in taken.go_on:
            TaskLog(task_id, self._agent.name).reclaimed(self._process, cause)
        for task_id in taken.given_up:
            TaskLog(task_id, self._agent.name).given_up(self._process)

    # What the actors need from their process.

    def _on_registered(self, held: set[str]) -> None:
        """The process was registered: abandon what it no longer holds, and claim."""
        for worker in self._workers:
            for task_id, host in list(worker.hosts.items()):
                if task_id not in held:
                    host.abandon()
        if self._control is not None:
            self._control.send_for_work()

    def lease_is_lost(self) -> None:
        """Have the heartbeat register; then the process claims."""
        self._heartbeat.send(None)

    def wake_in(self, seconds: float) -> None:
        """Claim then."""
        if self._control is not None:
            self._control.wake_in(seconds)

    async def has_room(self) -> None:
        """Wait for wake tokens."""
        if self._control is not None:
            await self._control.has_room()

    async def pass_on(self) -> None:
        """Let another worker, or another process, use the wake token."""
        if self._control is not None:
            await self._control.pass_on_token()
