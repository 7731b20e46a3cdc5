"""Settings of what a system lets people see: events, metrics, the log, the dashboard."""

import math
import os
import re
from collections.abc import Sequence
from typing import Annotated, Any, get_args

from annotated_types import Ge, Le
from pydantic import AfterValidator, AllowInfNan, Strict

from factorial.config.bounds import BucketSize, Count, Flag, LogFormat, LogLevel, Port, Seconds
from factorial.config.mistakes import hint
from factorial.config.validated import settings
from factorial.errors import ConfigError

__all__ = ["EventsConfig", "LoggingConfig", "MetricsTimelineConfig", "ObservabilityConfig"]

_HOST = re.compile(r"[A-Za-z0-9_.:%-]{1,255}")
_ORIGIN = re.compile(r"https?://[^\s/?#]+")
_BUCKET_SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86_400}
_MOST_BUCKETS = 5000


@settings
class EventsConfig:
    """How long stored events can be read."""

    max_per_owner: Count = 10_000
    """Events kept per owner. The oldest are removed first."""
    ttl: Seconds = 86400.0
    """Seconds after an owner's last event at which all stored events of that owner are removed."""


@settings
class MetricsTimelineConfig:
    """What is counted of the tasks, and for how long. `Orchestrator.get_metrics` returns the counts.

    A timeline has from 1 to 5,000 buckets. (0.1.x required at least 50.)
    """

    timeline_duration: Seconds = 3600.0
    """Seconds that the timeline shows."""
    bucket_size: BucketSize = "minutes"
    """The length of a bucket. Everything that happens within one second, minute, hour or day (UTC) is counted
    together."""
    retention_multiplier: Annotated[float, Strict(), AllowInfNan(False), Ge(1), Le(100)] = 2.0
    """Counts are kept for this many times `timeline_duration`."""

    def __post_init__(self) -> None:
        if self.timeline_duration < self.bucket_duration:
            raise ValueError(
                f"timeline_duration={self.timeline_duration:g} is less than one of its buckets, which "
                f"bucket_size={self.bucket_size!r} makes {self.bucket_duration} seconds long: "
                "use a longer timeline, or smaller buckets"
            )
        if self.bucket_count > _MOST_BUCKETS:
            raise ValueError(
                f"timeline_duration={self.timeline_duration:g} with bucket_size={self.bucket_size!r} makes "
                f"{self.bucket_count} buckets, and the most is {_MOST_BUCKETS}: use larger ones, or a shorter timeline"
            )

    @property
    def bucket_duration(self) -> int:
        """The length of one bucket, in seconds."""
        return _BUCKET_SECONDS[self.bucket_size]

    @property
    def bucket_count(self) -> int:
        """How many buckets a timeline has."""
        return math.ceil(self.timeline_duration / self.bucket_duration)

    @property
    def retention_duration(self) -> int:
        """Seconds for which counts are kept."""
        return math.ceil(self.timeline_duration * self.retention_multiplier)

    @property
    def display_name(self) -> str:
        """The timeline's length as a heading: `90s`, `50m`, `1h`, `7d`. Parts of a minute are dropped."""
        seconds = int(self.timeline_duration)
        for unit, length in (("d", 86_400), ("h", 3600)):
            if seconds % length == 0:
                return f"{seconds // length}{unit}"
        return f"{seconds // 60}m" if seconds >= 120 else f"{seconds}s"


@settings
class ObservabilityConfig:
    """The dashboard. This release validates these settings, but has no dashboard yet.

    Use `python -m factorial.supervisor status` and `Orchestrator.get_metrics` instead. `Orchestrator.run` logs a
    reminder if `enabled` is true.
    """

    enabled: Flag = True
    """Whether the dashboard is served."""
    host: str = "127.0.0.1"
    """Address or name to listen on. By default only this machine can connect; "0.0.0.0" accepts every network."""
    port: Port = 8080
    """Port to listen on."""
    cors_origins: Annotated[Sequence[str], AfterValidator(tuple)] = ()
    """Other origins whose pages may read it, such as "https://intranet.example"; "*" for all of them."""
    dashboard_name: str | None = None
    """Its heading."""

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host):
            raise ValueError(f"host={self.host!r}: give a name or an address alone, such as '127.0.0.1' or '0.0.0.0'")
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"cors_origins: {origin!r} is not an origin: write 'https://HOST', without a path, or '*'"
                )


@settings
class LoggingConfig:
    """What the processes of a system write to standard error."""

    level: LogLevel = "info"
    """The lowest level that is logged. `FACTORIAL_LOG_LEVEL` in the environment takes precedence."""
    format: LogFormat = "text"
    """Lines of text, or one JSON object per line. `FACTORIAL_LOG_FORMAT` in the environment takes precedence."""

    @property
    def resolved(self) -> "LoggingConfig":
        """These settings with the environment's values applied. Raises `ConfigError`."""
        chosen: dict[str, Any] = {"level": self.level, "format": self.format}
        for name, known in (("level", get_args(LogLevel)), ("format", get_args(LogFormat))):
            variable = f"FACTORIAL_LOG_{name.upper()}"
            if value := os.environ.get(variable, "").strip().lower():
                if value not in known:
                    raise ConfigError(f"in the environment, {variable}={value[:20]!r}: {hint(value, known)}")
                chosen[name] = value
        return LoggingConfig(**chosen)
