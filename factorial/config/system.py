"""Settings of a whole system: one runner, and all of them together. `SystemConfig.from_toml` reads them from a file."""

import os
import re
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from factorial.config.bounds import Count, Flag, Restart
from factorial.config.mistakes import explain, hint
from factorial.config.observation import EventsConfig, LoggingConfig, MetricsTimelineConfig
from factorial.config.server import RedisConfig
from factorial.config.supervision import (
    GroupConfig,
    HealthConfig,
    RunnerSupervisorConfig,
    SupervisorConfig,
    check_significant,
)
from factorial.config.toml import naming, read_toml
from factorial.config.validated import settings
from factorial.config.worker import AgentWorkerConfig, MaintenanceWorkerConfig
from factorial.errors import ConfigError

__all__ = ["RunnerConfig", "SystemConfig"]

_REFERENCE = re.compile(r"[^\s:/\\.]+(\.[^\s:/\\.]+)*:[^\s:]+")  # the path of a file does not match


@settings
class RunnerConfig:
    """One agent and the processes that run it."""

    agent: str
    """`module:attribute` of the agent."""
    processes: Count | None = None
    """Shorthand for `worker.processes`."""
    group: str | None = None
    """The group that it belongs to. Default: none, its parent is the root."""
    restart: Restart = "permanent"
    """Whether its parent restarts the runner after it gave up."""
    significant: Flag = False
    """Whether its end counts for `auto_shutdown`."""
    worker: AgentWorkerConfig = field(default_factory=AgentWorkerConfig)
    maintenance: MaintenanceWorkerConfig = field(default_factory=MaintenanceWorkerConfig)
    supervisor: RunnerSupervisorConfig = field(default_factory=RunnerSupervisorConfig)
    health: HealthConfig = field(default_factory=HealthConfig)

    def __post_init__(self) -> None:
        if not _REFERENCE.fullmatch(self.agent):
            raise ValueError(
                f"agent={self.agent!r}: write it as 'module:attribute', for example 'myapp.agents:weather'"
            )
        if self.processes is not None and self.worker.processes not in (1, self.processes):
            raise ValueError(
                f"processes={self.processes} and worker.processes={self.worker.processes} contradict each other: "
                "give one of them"
            )
        check_significant(self.significant, self.restart)
        if self.significant and self.group is not None:
            raise ValueError(
                "significant=true: a group has no auto_shutdown; make the group significant, or remove group from here"
            )

    @property
    def process_count(self) -> int:
        """How many processes this runner has."""
        return self.processes or self.worker.processes


@settings
class SystemConfig:
    """A whole system: the server, what is observed, the supervision tree, and the runners in it."""

    redis: RedisConfig = field(default_factory=RedisConfig)
    events: EventsConfig = field(default_factory=EventsConfig)
    metrics: MetricsTimelineConfig = field(default_factory=MetricsTimelineConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    supervisor: SupervisorConfig = field(default_factory=SupervisorConfig)
    group: tuple[GroupConfig, ...] = ()
    runner: tuple[RunnerConfig, ...] = ()

    def __post_init__(self) -> None:
        self._check_groups()
        tables: dict[str, Sequence[GroupConfig | RunnerConfig]] = {"group": self.group, "runner": self.runner}
        for table, entries in tables.items():
            for number, entry in enumerate(entries, 1):
                if entry.significant and self.supervisor.auto_shutdown == "never":
                    raise ValueError(
                        f"[[{table}]] {number}: significant=true has no effect while auto_shutdown in [supervisor] "
                        "is 'never': use 'any_significant' or 'all_significant' there"
                    )

    def _check_groups(self) -> None:
        names = [group.name for group in self.group]
        for number, group in enumerate(self.group, 1):
            if group.name in names[: number - 1]:
                raise ValueError(f"[[group]] {number}: name={group.name!r}: another group has this name already")
            if all(runner.group != group.name for runner in self.runner):
                raise ValueError(
                    f"[[group]] {number}: name={group.name!r}: no runner belongs to it; "
                    f"give one of them group = {group.name!r}, or remove the group"
                )
        for number, runner in enumerate(self.runner, 1):
            if runner.group is not None and runner.group not in names:
                raise ValueError(
                    f"[[runner]] {number}: group={runner.group!r}: there is no such [[group]]; "
                    f"{hint(runner.group, names)}"
                )

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> "SystemConfig":
        """Read and validate the file at `path`. Raises `ConfigError`, which names the file and the key."""
        with naming(path):
            try:
                config = TypeAdapter(cls).validate_python(read_toml(Path(path)))
            except ValidationError as invalid:
                raise ConfigError(explain(cls, invalid)) from None
            if not config.runner:
                raise ConfigError('there is no [[runner]]: name at least one, with agent = "module:attribute"')
            return config
