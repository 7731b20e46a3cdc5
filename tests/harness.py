"""Worker processes simulated in the test's own process: real actors, a real server, a fake lifeline, scripted models.

    async def test_it(system: System) -> None:
        agent = Agent(name="a", model=ScriptedModel([say("hi")]))
        await system.start(agent)
        task_id = await system.submit(agent, "hello")
        data = await system.ended(task_id)

The fixture `system` (tests/conftest.py) asserts the protocol's invariants when the test is over.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Self

import pytest

from factorial.actors.durable_host import DurableHost
from factorial.actors.worker_process import WorkerProcess
from factorial.agent.agent import BaseAgent
from factorial.config import AgentWorkerConfig, MaintenanceWorkerConfig, MetricsTimelineConfig, RedisConfig
from factorial.context import AgentContext
from factorial.mailbox import Namespace
from factorial.orchestrator import Orchestrator
from tests.redis.doctor import assert_invariants
from tests.support import PATIENCE, wait_until

__all__ = ["Lifeline", "Process", "System", "before_the_first_step", "quick", "tidy"]


def quick(**changes: Any) -> AgentWorkerConfig:
    """A worker's settings with short delays: one worker, fast heartbeats and retries."""
    settings: dict[str, Any] = {
        "workers": 1, "batch_size": 10, "heartbeat_interval": 0.5, "missed_heartbeats": 3,
        "retry_delay": 0.02, "max_retry_delay": 0.05,
    }  # fmt: skip
    return AgentWorkerConfig(**settings | changes)


def tidy(**changes: Any) -> MaintenanceWorkerConfig:
    """A maintenance actor's settings with a short interval."""
    return MaintenanceWorkerConfig(**{"interval": 0.05} | changes)


def before_the_first_step(monkeypatch: pytest.MonkeyPatch, act: Callable[[DurableHost], Any]) -> None:
    """Call `act` with the next host when it starts, before any of its steps."""
    start = DurableHost.start

    def act_at_once(host: DurableHost) -> "asyncio.Task[None]":
        monkeypatch.undo()
        act(host)
        return start(host)

    monkeypatch.setattr(DurableHost, "start", act_at_once)


class Lifeline:
    """The connection to a supervisor. Fake: the test sets its events."""

    def __init__(self, process: str) -> None:
        self.process = process
        self.draining = asyncio.Event()
        self.leaving = asyncio.Event()
        self.up = asyncio.Event()
        self.gauges: dict[str, Callable[[], float]] = {}

    def ready(self) -> None:
        """The process accepts work."""
        self.up.set()

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        """Register a gauge of the process."""
        self.gauges[name] = read


class Silence:
    """The connection of a dead process: it sends nothing."""

    async def execute(self, *args: Any) -> NoReturn:
        """Never return."""
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


class Process:
    """One simulated worker process."""

    def __init__(self, runner: WorkerProcess, mailbox: Namespace, lifeline: Lifeline) -> None:
        self.runner = runner
        self.mailbox = mailbox
        self.lifeline = lifeline
        self.name = lifeline.process
        self.life: asyncio.Task[None] | None = None

    async def begin(self, grace: float) -> None:
        """Start it. Returns when it accepts work."""
        self.life = asyncio.create_task(self.runner.run(self.lifeline, grace))
        up = asyncio.create_task(self.lifeline.up.wait())
        await asyncio.wait({self.life, up}, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if self.life.done():
            await self.life

    @property
    def holds(self) -> set[str]:
        """The ids of the runs that this process executes."""
        return {task_id for worker in self.runner._workers for task_id in worker.hosts}

    async def drain(self) -> None:
        """Stop gracefully, as on SIGTERM. Returns when the process has ended."""
        self.lifeline.draining.set()
        assert self.life is not None
        await asyncio.wait_for(self.life, PATIENCE)

    async def kill(self) -> None:
        """Die as by SIGKILL: from now on nothing reaches the server."""

        async def nothing(*args: Any) -> None:
            pass

        self.mailbox.scripts.commands = Silence()
        self.runner._leave = nothing  # type: ignore[method-assign, assignment]
        assert self.life is not None
        self.life.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.life

    async def stop(self) -> None:
        """End the process, whatever it does."""
        if self.life is not None and not self.life.done():
            self.lifeline.leaving.set()
            await self.drain()
        await self.mailbox.close()


class System:
    """One namespace: its orchestrator, its processes, and ways to see what is in it."""

    def __init__(self, redis_url: str, namespace: str) -> None:
        self.redis = RedisConfig(url=redis_url, namespace=namespace)
        self.orchestrator = Orchestrator(redis_url=redis_url, namespace=namespace)
        self.processes: list[Process] = []
        self._mailbox: Namespace | None = None

    async def mailbox(self) -> Namespace:
        """The test's own way into the namespace."""
        if self._mailbox is None:
            self._mailbox = await Namespace.open(self.redis)
        return self._mailbox

    async def execute(self, *args: Any) -> Any:
        """One command to the server."""
        return await (await self.mailbox()).connection.execute(*args)

    async def start(
        self,
        agent: BaseAgent[Any],
        worker: AgentWorkerConfig | None = None,
        maintenance: MaintenanceWorkerConfig | None = None,
        *,
        process: str = "",
        grace: float = 5.0,
        metrics: MetricsTimelineConfig | None = None,
    ) -> Process:
        """Start a process for `agent`."""
        name = process or f"p{len(self.processes) + 1}"
        mailbox = await Namespace.open(self.redis, metrics=metrics)
        runner = WorkerProcess(agent, mailbox, name, worker or quick(), maintenance or tidy())
        started = Process(runner, mailbox, Lifeline(name))
        self.processes.append(started)
        await started.begin(grace)
        return started

    async def submit(
        self, agent: BaseAgent[Any], query: str | AgentContext = "question", owner_id: str = "owner"
    ) -> str:
        """Enqueue a task, and give its id."""
        payload = AgentContext(query=query) if isinstance(query, str) else query
        return (await self.orchestrator.enqueue_task(agent, owner_id=owner_id, payload=payload)).id

    async def data(self, task_id: str) -> dict[str, Any]:
        """What is stored of the task."""
        data = await self.orchestrator.get_task_data(task_id)
        assert data is not None
        return data

    async def reaches(self, task_id: str, *statuses: str, timeout: float = PATIENCE) -> dict[str, Any]:
        """Wait until the task has one of the statuses, and give its data."""

        async def there() -> dict[str, Any] | None:
            data = await self.data(task_id)
            return data if data["status"] in statuses else None

        found: dict[str, Any] = await wait_until(there, timeout, f"task {task_id} is {' or '.join(statuses)}")
        return found

    async def ended(self, task_id: str, timeout: float = PATIENCE) -> dict[str, Any]:
        """Wait until the task has ended. Returns its data."""
        return await self.reaches(task_id, "completed", "failed", "cancelled", timeout=timeout)

    async def events(self, task_id: str | None = None, owner_id: str = "owner") -> list[dict[str, Any]]:
        """The owner's stored events, or those of one task."""
        mailbox = await self.mailbox()
        stored = await self.execute("XRANGE", mailbox.keys.events(owner_id), "-", "+")
        events = [{"id": event_id.decode(), **json.loads(parts[1])} for event_id, parts in stored]
        return [event for event in events if task_id in (None, event["task_id"])]

    async def types(self, task_id: str, *, progress: bool = False, owner_id: str = "owner") -> list[str]:
        """The types of the task's events, in order."""
        types = [event["event_type"] for event in await self.events(task_id, owner_id)]
        return types if progress else [name for name in types if not name.startswith("progress_")]

    async def make_due(self, task_id: str) -> None:
        """If the task pauses, or is parked with a deadline: let that time pass now."""
        keys = (await self.mailbox()).keys
        agent = await self.execute("HGET", keys.run(task_id), "agent")
        await self.execute("ZADD", keys.key("due", agent.decode()), "XX", 1, task_id)

    async def event(self, task_id: str, event_type: str, timeout: float = PATIENCE) -> dict[str, Any]:
        """Wait for the task's first event of this type."""

        async def found() -> dict[str, Any] | None:
            return next((one for one in await self.events(task_id) if one["event_type"] == event_type), None)

        event: dict[str, Any] = await wait_until(found, timeout, f"{event_type} of {task_id}")
        return event

    async def updates(
        self, until: Callable[[list[dict[str, Any]]], bool], timeout: float = PATIENCE, **filters: Any
    ) -> list[dict[str, Any]]:
        """What a subscriber receives until `until(received)` is true."""
        heard: list[dict[str, Any]] = []
        filters.setdefault("owner_id", "owner")
        async with (
            asyncio.timeout(timeout),
            contextlib.aclosing(self.orchestrator.subscribe_to_updates(**filters)) as updates,
        ):
            async for update in updates:
                heard.append(update)
                if until(heard):
                    break
        return heard

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop everything. Asserts the invariants of what is stored."""
        for process in self.processes:
            await process.stop()
        await assert_invariants((await self.mailbox()).connection, self.redis.namespace)
        await self.orchestrator.close()
        await (await self.mailbox()).close()


def texts(messages: Sequence[dict[str, Any]]) -> list[str]:
    """Role and content of each message, for comparison at a glance."""
    return [f"{message['role']}: {message.get('content')}" for message in messages]
