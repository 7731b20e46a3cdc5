"""Settings of worker processes and of upkeep."""

import math
from dataclasses import InitVar, field
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import Strict

from factorial.config.bounds import Count, Heartbeats, Limit, Pause, Seconds
from factorial.config.validated import settings

__all__ = ["AgentWorkerConfig", "MaintenanceWorkerConfig", "TaskTTLConfig"]


@settings
class AgentWorkerConfig:
    """How the processes of one agent work."""

    workers: Count = 10
    """Worker actors (coroutines) in each process."""
    batch_size: Count = 25
    """Tasks that one worker executes at once. A slot that becomes free is filled at once."""
    max_retries: Limit = 5
    """How many times in a row a failed turn is retried. A finished turn resets the count."""
    heartbeat_interval: Seconds = 5.0
    """Seconds between two heartbeats of a process."""
    missed_heartbeats: Heartbeats = 2
    """A process that misses this many heartbeats counts as dead, and its tasks are reclaimed."""
    turn_timeout: Seconds = 120.0
    """Seconds that one turn may take, model call and tools included."""
    owner_limit: Limit = 0
    """The most tasks of one owner that all processes of this agent execute at once. Further tasks of that owner wait,
    and other owners' tasks pass them. 0: no limit. A suspect counts towards the limit, but is not held back by it."""
    processes: Count = 1
    """Operating-system processes of this agent."""
    max_recoveries: Count = 3
    """How many processes may die with a task, without a finished step in between, before the task ends as failed with
    `crash_loop`. A death counts if the process held only this task, or crashed while this task was its suspect."""
    retry_delay: Seconds = 1.0
    """Seconds before the first retry. Each further retry doubles it, with jitter, up to `max_retry_delay`."""
    max_retry_delay: Seconds = 60.0
    """The longest pause between two attempts, in seconds, unless the provider asks for a longer one."""
    provider_patience: Pause = 14_400.0
    """Seconds for which a task is deferred while its provider cannot be reached, fails (HTTP 5xx) or limits the rate
    (429). Meanwhile no worker holds the task, and no retry is spent. 0: such errors count as failed attempts."""
    code_patience: Pause = 86_400.0
    """Seconds for which a task is deferred while the deployed code cannot read its stored context. 0: it fails."""
    max_retry_after: Seconds = 3600.0
    """The longest pause that a provider may ask for (`Retry-After`), in seconds. A longer one is shortened to this."""
    missed_heartbeats_threshold: InitVar[Annotated[int, Strict(), Ge(1), Le(100)] | None] = None
    """The name of `missed_heartbeats` in 0.1.x."""
    missed_heartbeats_grace_period: InitVar[Pause | None] = None
    """From 0.1.x: further seconds before a process counts as dead. They are converted to heartbeats."""

    def __post_init__(self, threshold: int | None, grace_period: float | None) -> None:
        missed = self.missed_heartbeats if threshold is None else threshold
        missed += math.ceil((grace_period or 0) / self.heartbeat_interval)
        object.__setattr__(self, "missed_heartbeats", max(missed, 2))

    @property
    def lease(self) -> float:
        """Seconds without a heartbeat after which a process counts as dead."""
        return self.heartbeat_interval * self.missed_heartbeats

    @property
    def grace_to_register(self) -> float:
        """Seconds for which a lease may be missing before the process's tasks are reclaimed. If the server has lost its
        data, every lease is missing, and a living process registers again with its next heartbeat."""
        return 1.5 * self.heartbeat_interval


@settings
class TaskTTLConfig:
    """How long an ended task can be read, in seconds."""

    completed_ttl: Seconds = 3600.0
    failed_ttl: Seconds = 86400.0
    cancelled_ttl: Seconds = 1800.0


@settings
class MaintenanceWorkerConfig:
    """How tasks are reclaimed from dead processes, and how ended tasks are removed."""

    interval: Seconds = 10.0
    """Seconds between two rounds of removing ended tasks. Leases are looked at twice a second, or as often as this."""
    workers: Count = 1
    """Maintenance actors in each process. One is enough; several may run a round at the same time safely."""
    task_ttl: TaskTTLConfig = field(default_factory=TaskTTLConfig)
    max_cleanup_batch: Annotated[int, Strict(), Ge(1), Le(1000)] = 100
    """Tasks that one script call reclaims or removes. A round repeats the call until nothing is left."""
    metrics_timeline: InitVar[Any] = None
    """From 0.1.x: accepted and ignored. The whole system counts alike: see `metrics_config` of `Orchestrator`."""
