"""`Orchestrator`, the client's entry point: enqueue, steer, cancel, read, subscribe, and run a system.

Any number of orchestrators, in web backends and scripts, may use the same namespace. They share nothing but the server.
"""

import os
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import Any, get_args, overload

from factorial.agent.agent import BaseAgent
from factorial.client.batches import Batches, batch_data
from factorial.client.connection import Connections
from factorial.client.messages import cancel_task, deliver_result, steer_task
from factorial.client.metrics import metrics_of
from factorial.client.options import ServerParts, check_connections, check_key, config_or_default, server_url
from factorial.client.tasks import checked_task, enqueue_task, task_data
from factorial.client.watch import subscribe
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
from factorial.context import AgentContext, Batch, ContextType
from factorial.errors import ConfigError, TaskNotFoundError
from factorial.mailbox import Namespace
from factorial.mailbox.keys import Keys
from factorial.mailbox.script import Scripts
from factorial.mailbox.transport.address import database_of
from factorial.mailbox.transport.client import RedisClient
from factorial.mailbox.views.metrics import Metrics
from factorial.mailbox.views.read import read_owner, read_status
from factorial.mailbox.views.subscription import EventFilter
from factorial.supervisor.service.embedding import Registered, run_registered
from factorial.task import Task, TaskStatus, check_owner_id, check_task_id

__all__ = [
    "AgentWorkerConfig", "MaintenanceWorkerConfig", "MetricsTimelineConfig", "ObservabilityConfig", "Orchestrator",
    "TaskTTLConfig",
]  # fmt: skip


class Orchestrator:
    """The way to the tasks of one namespace.

    Parameters:
        redis_url: redis://, rediss://, unix://, redis+sentinel:// or embedded:DIR. Without it, the address comes from
            `redis_host`, `redis_port`, `redis_db` and `redis_password`; without these, from the environment
            (`REDIS_URL`, or `REDIS_HOST`, `REDIS_PORT`, `REDIS_DB` and `REDIS_PASSWORD`), else localhost:6379.
        redis_max_connections: accepted for 0.1.x. An orchestrator uses one connection for commands and one for events,
            however many tasks and subscribers it serves.
        redis_pool: a redis-py connection pool. Only its address and credentials are used.
        openai_api_key, xai_api_key: put into the environment of this process, from which agents and worker processes
            read them. They are never stored or logged.
        namespace: first part of every key, by default "factorial". Systems with different namespaces are separate.
        events_config: how long events are kept.
        supervisor_config: the root of the supervision tree that `run` starts.
        metrics_config: what is counted, and for how long. It applies to the worker processes that `run` starts, too.
        observability_config: the dashboard's settings. They are checked, but this release has no dashboard.
        logging_config: what the processes that `run` starts log. A program that has configured logging keeps that.

    An orchestrator can be made anywhere. It connects when it is first used, and works in any event loop, also in
    several ones in turn. As an async context manager, it closes its connections at the end. Raises `ConfigError`.
    """

    redis: RedisConfig
    events: EventsConfig
    supervisor: SupervisorConfig
    metrics: MetricsTimelineConfig
    observability: ObservabilityConfig | None
    logging: LoggingConfig
    runners: dict[str, Registered]
    """What `register_runner` was called with, by the agent's name."""

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
        url = server_url(redis_url, ServerParts(redis_host, redis_port, redis_db, redis_password), redis_pool)
        check_connections(redis_max_connections)
        check_key("openai_api_key", openai_api_key)
        check_key("xai_api_key", xai_api_key)
        self.redis = RedisConfig(url=url, namespace=namespace or "factorial")
        place = "Orchestrator"
        self.events = config_or_default(place, "events_config", events_config, EventsConfig)
        self.supervisor = config_or_default(place, "supervisor_config", supervisor_config, SupervisorConfig)
        self.metrics = config_or_default(place, "metrics_config", metrics_config, MetricsTimelineConfig)
        if observability_config is not None:
            config_or_default(place, "observability_config", observability_config, ObservabilityConfig)
        self.observability = observability_config
        self.logging = config_or_default(place, "logging_config", logging_config, LoggingConfig)
        self.runners = {}
        self._connections = Connections(self.redis, self.events, self.metrics)
        self._batches = Batches()
        for variable, key in (("OPENAI_API_KEY", openai_api_key), ("XAI_API_KEY", xai_api_key)):
            if key:
                os.environ[variable] = key

    @property
    def namespace(self) -> str:
        """First part of every key."""
        return self.redis.namespace

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
        """Have `run` start processes for `agent`. Raises `ConfigError` if an agent of this name is registered.

        `supervisor_config`: how these processes are supervised. `restart`: what happens when they had too many
        restarts. A "permanent" runner is restarted; a "transient" or "temporary" one stays ended, and other runners
        go on.
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
            config_or_default(place, "agent_worker_config", agent_worker_config, AgentWorkerConfig),
            config_or_default(place, "maintenance_worker_config", maintenance_worker_config, MaintenanceWorkerConfig),
            config_or_default(place, "supervisor_config", supervisor_config, RunnerSupervisorConfig),
            config_or_default(place, "health_config", health_config, HealthConfig),
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
        """Start the supervision tree with all registered runners, and block until SIGINT or SIGTERM ends it.

        The processes of a runner import its agent by name. In such a process this call returns at once, so a script
        does not need `if __name__ == "__main__"`. Code before and after the call is executed in these processes, too,
        if it is in the agent's module: keep agents in a module of their own. `run_observability_server=False`: without
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
        """Store a task and queue it: `task`, or a new one for `owner_id` over `payload`.

        When this returns, the task is as durable as Redis is. If a task with the same id was enqueued before, that one
        is left unchanged, and returned with its present `status` and payload. A warning in the log says if its agent,
        owner or payload is another one.
        Raises `ContextError` if the payload cannot be stored as JSON, and `MailboxError`. Nothing is stored then,
        except that `MailboxUnavailableError` leaves this open: enqueue the same `task` again, it runs once.
        """
        return await enqueue_task(await self._scripts(), checked_task(agent, task, owner_id, payload))

    async def create_agent_task(
        self, agent: BaseAgent[ContextType], payload: ContextType, owner_id: str
    ) -> Task[ContextType]:
        """`enqueue_task` by its other name."""
        return await self.enqueue_task(agent, owner_id=owner_id, payload=payload)

    async def get_task_status(self, task_id: str) -> TaskStatus:
        """The status of the task. Raises `TaskNotFoundError`, `InvalidTaskIdError`."""
        status = await read_status(await self._scripts(), check_task_id(task_id))
        if status is None:
            raise TaskNotFoundError(task_id)
        return status

    async def get_task_data(self, task_id: str) -> dict[str, Any] | None:
        """What is stored of the task, as plain data; None if there is no such task.

        `payload` is the context, with `messages`, `turn`, and in the end `output`. `error` is the latest failure.
        `finish_reason` says why the model's last answer ended; None if the conversation does not end with one.
        `awaits` lists what a parked task awaits: `tool:<tool call id>`, `child:<task id>`.
        """
        return await task_data(await self._scripts(), task_id)

    async def get_task_agent(self, task_id: str) -> BaseAgent[Any] | None:
        """The agent of the task, if there is such a task and the agent has a runner here."""
        owner_and_agent = await read_owner(await self._scripts(), check_task_id(task_id))
        return self.get_agent(owner_and_agent[1]) if owner_and_agent else None

    async def get_batch_data(self, batch_id: str) -> dict[str, Any] | None:
        """How many tasks of a batch have ended, as plain data; None if there is no such batch.

        `total_tasks`, `completed_tasks` (those that have ended in any way), `progress` in percent, `status` (`active`,
        `completed`, `cancelled`), and of the ended ones how many are `completed`, `failed` and `cancelled`. After the
        last one has ended, this is kept for as long as events are.
        """
        return await batch_data(await self._scripts(), batch_id)

    async def enqueue_batch(
        self, agent: BaseAgent[Any], owner_id: str, payloads: Sequence[AgentContext], *, batch_id: str | None = None
    ) -> Batch:
        """Store and queue a task of `agent` for each payload, as one batch. A failed task does not stop the others.

        `batch_progress` is published with each whole percent, and `batch_completed` with the end of the last task. If
        this raises `MailboxError`, some of the tasks may be stored. The same call again, to the same orchestrator or
        with a `batch_id` of your own, stores the others, and none twice. Raises `ContextError` for a payload that does
        not fit, and stores nothing then.
        """
        return await self._batches.enqueue(await self._scripts(), agent, owner_id, payloads, batch_id)

    async def cancel_batch(self, batch_id: str) -> Batch:
        """Ask that each task of the batch that has not ended end as cancelled. If this returns, they will.

        `batch_cancelled` is published once, when all have ended. A worker that holds a task calls `on_run_cancelled`. A
        batch whose tasks have all ended is left as it is. Raises `BatchNotFoundError`.
        """
        return await self._batches.cancel(await self._scripts(), batch_id)

    async def cancel_task(self, task_id: str) -> TaskStatus:
        """Ask that the task end as cancelled. If this returns, it will.

        A task that no process holds ends at once, and `on_run_cancelled` is called here if its agent has a runner here.
        A task that is held has its model call aborted at once; the status is `processing` until it has ended.
        Raises `TaskNotFoundError`, and `InactiveTaskError` if the task has completed or failed.
        """
        return await cancel_task(await self._scripts(), task_id, self.runners)

    async def steer_task(self, task_id: str, messages: Sequence[Mapping[str, Any]]) -> None:
        """Have the task read `messages` before its next model call.

        They are appended to the conversation in this order. A task that was about to complete takes another turn; if
        `max_turns` allows none, it completes, and `run_steering_failed` is published. An empty list does nothing.

        Raises `ConfigError` for messages that no model accepts, `TaskNotFoundError`, and `InactiveTaskError` if the
        task has ended. These errors publish `run_steering_failed`, too.
        """
        await steer_task(await self._scripts(), task_id, messages)

    async def complete_deferred_tool(self, task_id: str, tool_call_id: str, result: Any) -> bool:
        """Deliver the result of a deferred tool's call. The task goes on when it has all results that it awaits.

        `result` is what a tool may return: text, anything that JSON can hold, a pair `(text for the model, data)`; or
        an exception, which the model sees as an error. True: the result is stored. False: the task does not await it,
        because it has one already, the call has timed out, or there is no such call. The result may be delivered before
        the task is parked. Raises `ContextError` if it cannot be stored as JSON.
        """
        return await deliver_result(await self._scripts(), task_id, tool_call_id, result)

    async def get_metrics(
        self, agent: BaseAgent[Any] | str | None = None, *, timeline: MetricsTimelineConfig | None = None
    ) -> Metrics:
        """For each agent, how many tasks were enqueued and ended lately, and how many are in flight.

        `agent`: only this one (an agent, or a name). Default: all that were counted lately or that have a process.
        `timeline`: another view than that of `metrics_config`, as far back as counts are kept.

        Durations are seconds from enqueued to ended. Everything is counted in the bucket in which it happened, by the
        server's clock; the last bucket is not over yet. `Metrics` (`factorial.mailbox.views.metrics`) has the details.
        Raises `MailboxError`.
        """
        return await metrics_of(self._scripts, agent, timeline, self.metrics)

    def get_updates_channel(self, owner_id: str) -> str:
        """The Redis pub/sub channel on which the owner's events are published as JSON text.

        The name contains the number of the database, because Redis pub/sub is the same in all of them. A listener
        misses what was published before it listened; `subscribe_to_updates` does not. Raises `ConfigError` for an owner
        id, or a server's URL, that cannot be one.
        """
        database = database_of(self.redis.resolved_url)
        return Keys(self.namespace, database).channel(check_owner_id(owner_id))

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
        """The owner's events as dictionaries, in order, each once. The iteration ends only with `close`.

        Filters: `task_ids`, `event_types` (exact), `event_pattern` (a regular expression, matched from the start of the
        type). An event has to pass all that are given.

        `after` is where to begin: after the event with this `id` (a browser that reconnects sends the last one it has
        seen), `"0"` for all that is stored, `"$"` for new ones only. Default: the first event of `task_ids`; without
        `task_ids`, the beginning of the owner's present activity, or else of the latest one. An activity begins when a
        task is enqueued and all earlier ones of the owner have ended. So two equal calls begin with the same event, and
        a subscriber that comes after its task was enqueued, or has ended, misses nothing of it.

        `timeout` and `ignore_subscribe_messages` are accepted for 0.1.x and ignored: only events are yielded, and
        `asyncio.timeout` limits the wait.

        A lost connection is restored, and no event is missed because of it. If events were trimmed before they could be
        read (`EventsConfig`), an update of type `subscription_gap` says so. Raises `ConfigError`, and `MailboxError` if
        the server cannot be reached at first.
        """
        position: object = after
        if position is not None and not isinstance(position, str):
            raise ConfigError(f"after={position!r} is not an event id: use the 'id' of an update, '0' or '$'")
        wanted = EventFilter(task_ids, event_types, event_pattern)
        namespace = await self._namespace()
        async with aclosing(subscribe(namespace, owner_id, wanted, after)) as updates:
            async for update in updates:
                yield update

    async def get_redis_client(self) -> RedisClient:
        """A redis-py client for the same server, with connections of its own, that answers in text. Close it after use.

        It is for your own data, and for `get_updates_channel`. With Redis Cluster it is a `RedisCluster`. With Sentinel
        it is bound to the present primary: after a failover, get another client.
        """
        return await self._connections.redis_client()

    async def close(self) -> None:
        """Close the connections of the running event loop, and release an embedded server.

        Iterations over `subscribe_to_updates` in this event loop end. Other calls that wait for the server raise
        `MailboxUnavailableError`. An orchestrator that is used again connects again.

        Optional: connections are closed with their event loop, and the server is released when the program exits.
        """
        await self._connections.close()

    async def __aenter__(self) -> "Orchestrator":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _namespace(self) -> Namespace:
        return await self._connections.namespace()

    async def _scripts(self) -> Scripts:
        return (await self._namespace()).scripts
