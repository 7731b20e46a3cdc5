"""Every setting, validated once, in one place. A message names the setting and says what it accepts.

    from factorial.config import AgentWorkerConfig, SystemConfig

The classes are frozen dataclasses. Times are seconds. Every field of a part has a default, apart from those that name
something: the agent of a runner, a group. `SystemConfig.from_toml` reads the file of `python -m factorial.supervisor`;
its tables have the names of these fields.
"""

from factorial.config.observation import EventsConfig, LoggingConfig, MetricsTimelineConfig, ObservabilityConfig
from factorial.config.server import RedisConfig
from factorial.config.supervision import GroupConfig, HealthConfig, RunnerSupervisorConfig, SupervisorConfig
from factorial.config.system import RunnerConfig, SystemConfig
from factorial.config.worker import AgentWorkerConfig, MaintenanceWorkerConfig, TaskTTLConfig

__all__ = [
    "AgentWorkerConfig", "EventsConfig", "GroupConfig", "HealthConfig", "LoggingConfig", "MaintenanceWorkerConfig",
    "MetricsTimelineConfig", "ObservabilityConfig", "RedisConfig", "RunnerConfig", "RunnerSupervisorConfig",
    "SupervisorConfig", "SystemConfig", "TaskTTLConfig",
]  # fmt: skip
