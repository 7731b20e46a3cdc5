"""The client's door: put tasks in, watch, steer and cancel them, read what became of them, and run the whole system.

Any number of orchestrators, in web backends and scripts, work on the same Redis: what they share is there alone (I07).
"""

import asyncio
import logging
import os
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args, overload

from factorial._core.json import dump_json
from factorial._core.loop import close_with_loop
from factorial._core.redact import hide_secrets
from factorial._core.text import iso, shorten, with_article
from factorial.agent.agent import BaseAgent
from factorial.agent.callbacks import call_back
from factorial.agent.lifecycle.failure import describe
from factorial.agent.lifecycle.snapshot import decode_context, encode_fields, encode_messages
from factorial.agent.lifecycle.waiting import encode_result
from factorial.config import (
    AgentWorkerConfig,
    EventsConfig,
    HealthConfig,
    LoggingConfig,
    MaintenanceWorkerConfig,
    MetricsTimelineConfig,
    ObservabilityConfig,
    RedisConfig,
    RunnerSupervisorConfig,
    SupervisorConfig,
    SystemConfig,
    TaskTTLConfig,
)
from factorial.config.bounds import Restart
from factorial.config.server import redis_url as url_of
from factorial.context import ContextType, ExecutionContext, opening_messages
from factorial.errors import (
    ConfigError,
    ContextError,
    FactorialError,
    FatalAgentError,
    InactiveTaskError,
    MailboxFullError,
    TaskNotFoundError,
)
from factorial.events import EventType, QueueEvent
from factorial.mailbox import Namespace
from factorial.mailbox.embedded.share import EmbeddedServer, resolve
from factorial.mailbox.keys import Keys
from factorial.mailbox.operations.deliver import deliver
from factorial.mailbox.operations.enqueue import enqueue
from factorial.mailbox.operations.publish import Publisher
from factorial.mailbox.operations.steer import cancel, steer
from factorial.mailbox.script import Scripts
from factorial.mailbox.transport.client import RedisClient, new_client, url_of_pool
from factorial.mailbox.views.metrics import Metrics, read_metrics
from factorial.mailbox.views.read import born_at, read_batch, read_owner, read_run, read_status
from factorial.mailbox.views.subscription import EventFilter, Position, activity_since, end_of_events
from factorial.supervisor.embedding import Registered, run_registered
from factorial.task import Task, TaskMetadata, TaskStatus, check_owner_id, check_task_id
from factorial.telemetry.story import Story

__all__ = [
    "AgentWorkerConfig", "MaintenanceWorkerConfig", "MetricsTimelineConfig", "ObservabilityConfig", "Orchestrator",
    "TaskTTLConfig",
]  # fmt: skip


logger = logging.getLogger(__name__)

Config = TypeVar("Config")

_MOST_MARKS = 10_000
_LONGEST_CALL_ID = 512
_ROLES = ("system", "developer", "user", "assistant")


class Orchestrator:
    """The way to the tasks of one namespace.

    Parameters (checklist I03, O01):
        redis_url: redis://, rediss://, unix://, redis+sentinel:// or embedded:DIR. Without it `redis_host` and its
            companions, else the environment (`REDIS_URL`, or `REDIS_HOST` and its companions), else localhost:6379.
        redis_max_connections: accepted, and never reached: an orchestrator uses one connection for commands and one
            for events, however many tasks and subscribers it serves.
        redis_pool: a redis-py connection pool, for its address and credentials alone. It stays the caller's.
        openai_api_key, xai_api_key: put into this process's environment, where the agents and the worker processes find
            them. They are never stored or logged.
        namespace: first part of every key, by default "factorial". Systems with different ones do not see each other.
        logging_config: what `run` has its processes log, and how (I10). A program that has set up logging keeps that.
        metrics_config: what is counted, and for how long (O12). Worker processes that `run` starts count alike.
        observability_config: the dashboard's settings (O11), for a later release: this one has no page to show.

    It may be made anywhere, connects when it is first used, and works in any event loop, also in several one after the
    other. Raises `ConfigError`.
    """

    def __init__(
        self,
        *,
        redis_url: str | None = None,
        redis_host: str | None = None,
        redis_port: int | None = None,
        redis_db: int | None = None,
        redis_password: str | None = None,
        redis_max_connections: int = 50,
        redis_pool: Any = None,
        openai_api_key: str | None = None,
        xai_api_key: str | None = None,
        namespace: str | None = None,
        events_config: EventsConfig | None = None,
        supervisor_config: SupervisorConfig | None = None,
        metrics_config: MetricsTimelineConfig | None = None,
        observability_config: ObservabilityConfig | None = None,
        logging_config: LoggingConfig | None = None,
    ) -> None:
        parts = {"host": redis_host, "port": redis_port, "db": redis_db, "password": redis_password}
        given = [f"redis_{name}" for name, value in parts.items() if value is not None]
        if redis_url is not None and given:
            raise ConfigError(f"redis_url and {given[0]} exclude each other: give one of them")
        if redis_pool is not None:
            if redis_url is not None or given:
                raise ConfigError(f"redis_pool and {[*given, 'redis_url'][0]} exclude each other: give one of them")
            redis_url = url_of_pool(redis_pool)
        most: object = redis_max_connections
        if not isinstance(most, int) or most < 1:
            raise ConfigError(f"redis_max_connections={most!r}: use a whole number of at least 1")
        keys: dict[str, object] = {"openai_api_key": openai_api_key, "xai_api_key": xai_api_key}
        for option, key in keys.items():
            if key is not None and not isinstance(key, str):  # told without the value, whatever that is
                raise ConfigError(f"Orchestrator: {option} is of type {type(key).__name__}: give the key as text")
        if given:
            host = redis_host or os.environ.get("REDIS_HOST") or "localhost"
            redis_url = url_of(host=host, port=redis_port or 6379, db=redis_db or 0, password=redis_password)
        self.redis = RedisConfig(url=redis_url or "", namespace=namespace or "factorial")
        place = "Orchestrator"
        self.events = _config(place, "events_config", events_config, EventsConfig)
        self.supervisor = _config(place, "supervisor_config", supervisor_config, SupervisorConfig)
        self.metrics = _config(place, "metrics_config", metrics_config, MetricsTimelineConfig)
        if observability_config is not None:
            _config(place, "observability_config", observability_config, ObservabilityConfig)
        self.observability = observability_config
        self.logging = _config(place, "logging_config", logging_config, LoggingConfig)
        self.runners: dict[str, Registered] = {}
        self._keys = Keys(self.redis.namespace)
        self._server: EmbeddedServer | None = None
        self._opened: dict[asyncio.AbstractEventLoop, asyncio.Future[_Opened]] = {}
        self._unwatched: OrderedDict[str, str] = OrderedDict()
        for variable, given_key in (("OPENAI_API_KEY", openai_api_key), ("XAI_API_KEY", xai_api_key)):
            if given_key:
                os.environ[variable] = given_key

    @property
    def namespace(self) -> str:
        """First part of every key."""
        return self.redis.namespace

    # -- the system

    def register_runner(
        self,
        agent: BaseAgent[Any],
        agent_worker_config: AgentWorkerConfig | None = None,
        maintenance_worker_config: MaintenanceWorkerConfig | None = None,
        *,
        supervisor_config: RunnerSupervisorConfig | None = None,
        health_config: HealthConfig | None = None,
        restart: Restart = "permanent",
    ) -> None:
        """Have `run` start processes for `agent` (checklist I04, O02). Raises `ConfigError` if its name is taken.

        `supervisor_config`: how its processes are supervised. `restart`: what becomes of the runner when it has had too
        many restarts; a "transient" or "temporary" one stays ended, and the others go on.
        """
        if not isinstance(agent, BaseAgent):
            raise ConfigError(f"register_runner(agent={agent!r}): give an Agent, or an object of your own agent class")
        if agent.name in self.runners:
            raise ConfigError(
                f"there is a runner for an agent named {agent.name!r} already: give one of them another name=..."
            )
        if restart not in get_args(Restart):
            raise ConfigError(f"register_runner: restart={restart!r}: use one of {', '.join(get_args(Restart))}")
        place = "register_runner"
        self.runners[agent.name] = Registered(
            agent,
            _config(place, "agent_worker_config", agent_worker_config, AgentWorkerConfig),
            _config(place, "maintenance_worker_config", maintenance_worker_config, MaintenanceWorkerConfig),
            _config(place, "supervisor_config", supervisor_config, RunnerSupervisorConfig),
            _config(place, "health_config", health_config, HealthConfig),
            restart,
        )

    @property
    def agents_by_name(self) -> dict[str, BaseAgent[Any]]:
        """The agents that have a runner here."""
        return {name: registered.agent for name, registered in self.runners.items()}

    @property
    def agents(self) -> list[BaseAgent[Any]]:
        """The agents that have a runner here, in the order in which they were registered."""
        return list(self.agents_by_name.values())

    def get_agent(self, agent_name: str) -> BaseAgent[Any] | None:
        """The agent of this name, if it has a runner here."""
        return self.agents_by_name.get(agent_name)

    def run(self, run_observability_server: bool = True) -> None:
        """Start the supervision tree with all registered runners, and block until SIGINT or SIGTERM ends it (O03).

        Each runner's processes import its agent by name. In such a process this call returns at once, so a script needs
        no `if __name__ == "__main__"` around it; but what stands before and after the call in the agent's module is
        executed in each of them, too: keep agents in a module of their own. `run_observability_server=False`: without
        the dashboard, whatever its settings. Raises `ConfigError`, `MailboxError` and `SupervisionError`.
        """
        config = SystemConfig(
            redis=self.redis,
            events=self.events,
            metrics=self.metrics,
            logging=self.logging,
            supervisor=self.supervisor,
        )
        run_registered(config, list(self.runners.values()), self.observability if run_observability_server else None)

    # -- tasks

    @overload
    async def enqueue_task(self, agent: BaseAgent[ContextType], task: Task[ContextType]) -> Task[ContextType]: ...
    @overload
    async def enqueue_task(
        self, agent: BaseAgent[ContextType], *, owner_id: str, payload: ContextType
    ) -> Task[ContextType]: ...
    async def enqueue_task(
        self,
        agent: BaseAgent[ContextType],
        task: Task[ContextType] | None = None,
        *,
        owner_id: str | None = None,
        payload: ContextType | None = None,
    ) -> Task[ContextType]:
        """Store a task and queue it: `task`, or a new one for `owner_id` over `payload` (checklist I05, O06).

        Once it returns, the task is not lost while Redis keeps its data. A task that was enqueued before is left as it
        is. Raises `ContextError` if the payload cannot be stored as JSON, and `MailboxError`. Nothing is stored then;
        with `MailboxUnavailableError`, that is not certain: enqueue the same `task` again, it runs once.
        """
        if not isinstance(agent, BaseAgent):
            raise ConfigError(f"enqueue_task(agent={agent!r}): give the agent itself, not its name")
        if task is not None and not isinstance(task, Task):
            raise ConfigError(f"enqueue_task(task={task!r}): give what agent.create_task(...) made")
        if task is None:
            if owner_id is None or payload is None:
                raise ConfigError("enqueue_task: give task=..., or owner_id=... and payload=...")
            task = agent.create_task(owner_id, payload)
        elif owner_id is not None or payload is not None:
            raise ConfigError("enqueue_task: task and owner_id/payload exclude each other: give one form")
        if task.agent != agent.name:
            raise ConfigError(f"enqueue_task: the task is for agent {task.agent!r}, and the agent is {agent.name!r}")
        if not isinstance(task.payload, agent.context_class):
            raise ContextError(f"enqueue_task: agent {agent.name!r} works on {agent.context_class.__name__}")
        stored = await enqueue(
            (await self._mailbox()).scripts,
            task_id=check_task_id(task.id),
            agent=agent.name,
            owner_id=check_owner_id(task.owner_id),
            conversation=encode_messages(opening_messages(task.payload)),
            fields=encode_fields(task.payload),
        )
        if stored.event_id:
            self._mark(task.owner_id, stored.event_id)
            Story(task.id, agent.name, task.owner_id).enqueued()
        return task

    async def create_agent_task(
        self, agent: BaseAgent[ContextType], payload: ContextType, owner_id: str
    ) -> Task[ContextType]:
        """`enqueue_task`, by another name."""
        return await self.enqueue_task(agent, owner_id=owner_id, payload=payload)

    async def get_task_status(self, task_id: str) -> TaskStatus:
        """Where the task stands (checklist O07). Raises `TaskNotFoundError`, `InvalidTaskIdError`."""
        status = await read_status((await self._mailbox()).scripts, check_task_id(task_id))
        if status is None:
            raise TaskNotFoundError(task_id)
        return status

    async def get_task_data(self, task_id: str) -> dict[str, Any] | None:
        """All that is known of the task, as plain data; None if there is no such task (checklist O08).

        `payload` is the context, with `messages`, `turn`, and in the end `output`; `error` says why it failed last.
        `waits_for` lists what a parked task waits for: `tool:<tool call id>`, `child:<task id>`.
        """
        run = await read_run((await self._mailbox()).scripts, check_task_id(task_id))
        if run is None:
            return None
        return {
            "id": run.task_id,
            "owner_id": run.owner_id,
            "agent": run.agent,
            "status": run.status.value,
            "payload": run.payload,
            "retries": run.retries,
            "pickups": run.pickups,
            "error": run.error or None,
            "process": run.holder or None,
            "metadata": TaskMetadata(
                run.owner_id, run.parent_id or None, run.batch_id or None, run.created_at
            ).to_dict(),
            "parent_id": run.parent_id or None,
            "batch_id": run.batch_id or None,
            "waits_for": run.waits_for,
            "created_at": iso(run.created_at),
            "ended_at": iso(run.ended_at) if run.ended_at else None,
        }

    async def get_task_agent(self, task_id: str) -> BaseAgent[Any] | None:
        """The agent of the task, if there is such a task and the agent has a runner here."""
        whose = await read_owner((await self._mailbox()).scripts, check_task_id(task_id))
        return self.get_agent(whose[1]) if whose else None

    async def cancel_task(self, task_id: str) -> TaskStatus:
        """Have the task end as cancelled (checklist O09). Accepted means that it will.

        A task that nobody executes ends at once, and `on_run_cancelled` is called here, if its agent has a runner here.
        Of one that is executed, the model call is abandoned at once, and the status is `processing` until it has ended.
        Raises `TaskNotFoundError`, and `InactiveTaskError` if the task has completed or failed.
        """
        scripts = (await self._mailbox()).scripts
        answer = await cancel(scripts, task_id=check_task_id(task_id))
        if Story.is_wanted(logging.DEBUG) and (whose := await read_owner(scripts, task_id)):
            Story(task_id, whose[1], whose[0]).cancelling(answer.status)
        if answer.ended_here and any(agent.on_run_cancelled for agent in self.agents):
            await self._call_back_cancelled(scripts, task_id)
        return answer.status

    async def _call_back_cancelled(self, scripts: Scripts, task_id: str) -> None:
        """No worker had the task, so nobody else will tell its agent."""
        run = await read_run(scripts, task_id)
        agent = self.get_agent(run.agent) if run else None
        if run is None or agent is None or agent.on_run_cancelled is None:
            return
        execution = ExecutionContext(
            task_id=task_id,
            owner_id=run.owner_id,
            events=Publisher(scripts, run.owner_id),
            agent_name=agent.name,
            retries=run.retries,
            pickups=run.pickups,
        )
        try:
            context = decode_context(
                agent.context_class,
                {name: dump_json(value) for name, value in run.payload.items() if name != "messages"},
                encode_messages(run.payload["messages"]),
            )
            async with asyncio.timeout(self.runners[agent.name].worker.turn_timeout):
                with execution.active():
                    await call_back(agent.on_run_cancelled, context, execution)
        except (FatalAgentError, ContextError, TimeoutError) as error:  # the run has ended: this cannot change it
            logger.warning("task %s of %s: on_run_cancelled: %s", task_id, agent.name, describe(error))

    async def steer_task(self, task_id: str, messages: Sequence[Mapping[str, Any]]) -> None:
        """Have the task read `messages` before its next model call (checklist O10).

        They enter the conversation in this order, after what is there. A task that was about to complete takes
        another turn; if `max_turns` allows none, it completes, and `run_steering_failed` says so. Raises `ConfigError`
        for messages that no model would take, `TaskNotFoundError`, and `InactiveTaskError` if the task has ended;
        `run_steering_failed` tells the owner's subscribers, too.
        """
        check_task_id(task_id)
        scripts = (await self._mailbox()).scripts
        try:
            encoded = encode_messages(_checked_messages(messages))
            await steer(scripts, task_id=task_id, message_id=uuid.uuid4().hex, messages=encoded)
        except (ConfigError, ContextError, InactiveTaskError, MailboxFullError) as refused:
            await self._tell_of_refusal(task_id, refused)
            raise

    async def _tell_of_refusal(self, task_id: str, refused: FactorialError) -> None:
        scripts = (await self._mailbox()).scripts
        if (whose := await read_owner(scripts, task_id)) is None:
            return
        owner_id, agent = whose
        event = QueueEvent(
            event_type=EventType.RUN_STEERING_FAILED,
            task_id=task_id,
            owner_id=owner_id,
            agent_name=agent,
            error=str(refused),
        )
        await Publisher(scripts, owner_id).publish_event(event)

    async def get_metrics(
        self, agent: BaseAgent[Any] | str | None = None, *, timeline: MetricsTimelineConfig | None = None
    ) -> Metrics:
        """What became of the tasks lately, and how many are in flight, for each agent (checklist O12).

        `agent`: this one alone (an agent, or a name); else all that were counted lately or that some process works for.
        `timeline`: another view than that of `metrics_config`, as far as the counts are still kept.

            {"at": "2026-01-02T03:04:05.678Z", "bucket_seconds": 60, "agents": {"weather": {
                "now": {"queued": 2, "processing": 7, "backoff": 0, "waiting": 1},
                "totals": {"enqueued": 40, "completed": 28, "failed": 1, "cancelled": 1, "retried": 3, "recovered": 0,
                           "mean_duration": {"completed": 4.2, "failed": 61.5, "cancelled": 0.9}, "max_duration": ...},
                "buckets": [{"start": "2026-01-02T02:05:00.000Z", "enqueued": 0, ...}, ...]}}}

        Buckets begin at whole seconds, minutes, hours or days in UTC; there are as many as fit into the timeline, and
        the last one is under way. Durations are seconds from enqueued to ended. A task counts in the bucket in which it
        happened, by the server's clock. Clients whose settings differ do not disturb each other: if some have counted
        in longer buckets, all is told in these (`bucket_seconds`). Raises `MailboxError`.
        """
        name: object = agent.name if isinstance(agent, BaseAgent) else agent
        if name is not None and not isinstance(name, str):
            raise ConfigError(f"get_metrics(agent={name!r}): give an agent, or the name of one")
        view = self.metrics if timeline is None else _config("get_metrics", "timeline", timeline, MetricsTimelineConfig)
        return await read_metrics((await self._mailbox()).scripts, view, name)

    async def complete_deferred_tool(self, task_id: str, tool_call_id: str, result: Any) -> bool:
        """Give the result of a deferred tool's call; the task goes on when all is there that it waits for (T02).

        `result` is what a tool may return: text, anything that JSON can hold, a pair `(text for the model, data)`; or
        an exception, which the model sees as an error. True: it is kept. False: nobody waits for it; it was given
        before, is too late, or there is no such call. May be called from anywhere, also before the task is parked.
        Raises `ContextError` if the result cannot be stored as JSON.
        """
        call_id: object = tool_call_id
        if not isinstance(call_id, str) or not 0 < len(call_id) <= _LONGEST_CALL_ID:
            raise ConfigError(
                f"tool_call_id={str(tool_call_id)[:80]!r}: give the id of the call, "
                "which is execution_ctx.tool_call_id in the tool"
            )
        encoded = encode_result(tool_call_id, result)
        scripts = (await self._mailbox()).scripts
        return await deliver(scripts, task_id=check_task_id(task_id), tool_call_id=tool_call_id, result=encoded)

    async def get_batch_data(self, batch_id: str) -> dict[str, Any] | None:
        """How far the tasks of a batch are, as plain data; None if there is no such batch (any more).

        `total_tasks`, `completed_tasks` (those that have ended, however), `progress` in percent, and of the ended ones
        how many are `completed`, `failed` and `cancelled`. Kept as long as events after the last one has ended.
        """
        batch = await read_batch((await self._mailbox()).scripts, check_task_id(batch_id))
        if batch is None:
            return None
        return {
            "id": batch_id,
            "total_tasks": batch.total,
            "completed_tasks": batch.ended,
            "progress": 100 * batch.ended / batch.total,
            "completed": batch.completed,
            "failed": batch.failed,
            "cancelled": batch.cancelled,
        }

    # -- events

    def get_updates_channel(self, owner_id: str) -> str:
        """The Redis pub/sub channel on which the owner's events are sent as JSON text (checklist E02).

        What is published while nobody listens is not there for a later listener: `subscribe_to_updates` has it all.
        """
        return self._keys.channel(check_owner_id(owner_id))

    async def subscribe_to_updates(
        self,
        owner_id: str,
        task_ids: Collection[str] | None = None,
        event_types: Collection[str] | None = None,
        event_pattern: str | None = None,
        after: str | None = None,
        *,
        timeout: float | None = None,
        ignore_subscribe_messages: bool = True,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The owner's events as dictionaries, in order, each once, without end (checklist I06, E01).

        Filters: `task_ids`, `event_types` (exact), `event_pattern` (a regular expression, matched from the start of the
        type); an event has to pass all that are given.

        `after` is where to begin: behind the event with this `id` (a browser that reconnects sends the last one it has
        seen), `"0"` for all that is kept, `"$"` for new ones only. Without it: with the first event of `task_ids`;
        else with what this orchestrator enqueued for the owner since it was last subscribed to; else with the owner's
        present or latest activity. So a subscriber that comes after its task was enqueued, or has even ended, misses
        nothing.

        `timeout` and `ignore_subscribe_messages` are accepted and change nothing: this waits for as long as it takes
        (`asyncio.timeout` ends it), and yields events alone.

        A connection that is lost is found again, and nothing is missed by it. If events that were to come have been
        trimmed (`EventsConfig`), an update of type `subscription_gap` says so. Raises `ConfigError`, and
        `MailboxError` if the server cannot be reached to begin with.
        """
        behind: object = after
        if behind is not None and not isinstance(behind, str):
            raise ConfigError(f"after={behind!r} is not an event id: use the 'id' of an update, '0' or '$'")
        wanted = EventFilter(task_ids, event_types, event_pattern)
        mailbox = await self._mailbox()
        start = await self._start(mailbox, check_owner_id(owner_id), task_ids, after)
        async with aclosing(mailbox.subscribe(owner_id, start, wanted)) as updates:
            async for update in updates:
                yield update

    async def _start(
        self, mailbox: Namespace, owner_id: str, task_ids: Collection[str] | None, after: str | None
    ) -> Position:
        if after is not None and after != "$":
            return Position.after(after)
        # Before what else is asked for: a task that is enqueued meanwhile is found, or its events come after this.
        newest = await end_of_events(mailbox.scripts, owner_id)
        if after == "$":
            return newest
        if task_ids:
            births = await born_at(mailbox.scripts, [check_task_id(task_id) for task_id in task_ids])
        else:
            since = await activity_since(mailbox.scripts, owner_id)
            births = [event_id for event_id in (self._unwatched.pop(owner_id, None), since) if event_id]
        return min((Position.before(event_id) for event_id in births), default=newest)

    def _mark(self, owner_id: str, event_id: str) -> None:
        """Remember where the owner's events begin that nobody has subscribed to here."""
        self._unwatched.setdefault(owner_id, event_id)
        if len(self._unwatched) > _MOST_MARKS:
            self._unwatched.popitem(last=False)

    # -- the connection

    async def get_redis_client(self) -> RedisClient:
        """A redis-py client for the same server, with connections of its own, that answers in text. Close it after use.

        For what you keep there yourself, and to hear `get_updates_channel`. With Redis Cluster it is a `RedisCluster`;
        with Sentinel it stays with the primary of this moment: after a failover, get another one.
        """
        return new_client((await self._mailbox()).connection.endpoint.route)

    async def _mailbox(self) -> Namespace:
        """The mailbox of the running event loop; it is opened when it is first asked for, and closed with the loop."""
        loop = asyncio.get_running_loop()
        opened = self._opened.get(loop)
        if opened is None or (opened.done() and (opened.cancelled() or opened.exception())):
            opened = self._opened[loop] = asyncio.ensure_future(self._open())
        return (await asyncio.shield(opened)).mailbox

    async def _open(self) -> "_Opened":
        redis = self.redis
        if self._server is None:
            _, self._server = await asyncio.to_thread(resolve, redis.resolved_url)
        if self._server is not None:  # held by this object, not by its mailboxes: it outlives their event loops
            redis = replace(redis, url=self._server.url)
        mailbox = await Namespace.open(redis, self.events, self.metrics)
        loop = asyncio.get_running_loop()

        async def close() -> None:
            self._opened.pop(loop, None)
            await mailbox.close()

        return _Opened(mailbox, await close_with_loop(close))

    async def close(self) -> None:
        """Close the connections of this event loop, and let go of an embedded server. Optional: exit does it, too."""
        if opened := self._opened.pop(asyncio.get_running_loop(), None):
            await asyncio.wait([opened])
            if not opened.cancelled() and opened.exception() is None:
                await opened.result().closer.aclose()
        if self._server is not None:
            server, self._server = self._server, None
            await asyncio.to_thread(server.release)

    async def __aenter__(self) -> "Orchestrator":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


@dataclass(frozen=True, slots=True)
class _Opened:
    """The mailbox of one event loop, and what closes it: by `aclose`, or with the loop."""

    mailbox: Namespace
    closer: AsyncGenerator[None, None]


def _config(place: str, option: str, given: Config | None, kind: type[Config]) -> Config:
    """`given`, or the defaults. Raises `ConfigError` if it is something else."""
    if given is None:
        return kind()
    if not isinstance(given, kind):
        shown = hide_secrets(shorten(repr(given), 100))
        raise ConfigError(f"{place}: {option}={shown}: give {with_article(kind.__name__)}")
    return given


def _checked_messages(messages: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(messages, list | tuple) or not messages:
        raise ConfigError('Invalid steering message format: give a list such as [{"role": "user", "content": "..."}]')
    for position, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES or not _is_content(message):
            raise ConfigError(
                f"Invalid steering message format: messages[{position}] needs a 'content' (text, or a list of parts), "
                f"and a 'role' ({', '.join(_ROLES)})"
            )
        if message.get("tool_calls"):  # nobody would answer them, and no provider takes such a conversation
            raise ConfigError(
                f"Invalid steering message format: messages[{position}] calls tools, which only a model can"
            )
    return messages


def _is_content(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    if isinstance(content, list):
        return bool(content) and all(isinstance(part, Mapping) and part.get("type") for part in content)
    return isinstance(content, str) and bool(content)
