"""Every setting, validated once, in one place. A message names the setting and what it takes.

The classes are frozen; each field has a default (checklist I13). `SystemConfig.from_toml` reads the file
of `python -m factorial.supervisor`: its tables have the same names and fields.
"""

import difflib
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args, get_type_hints
from urllib.parse import quote

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, AllowInfNan, ConfigDict, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from factorial._core.urls import ServerURL
from factorial.errors import ConfigError

__all__ = [
    "AgentWorkerConfig", "EventsConfig", "GroupConfig", "HealthConfig", "LoggingConfig", "MaintenanceWorkerConfig",
    "MetricsTimelineConfig", "ObservabilityConfig", "RedisConfig", "RunnerConfig", "RunnerSupervisorConfig",
    "SupervisorConfig", "SystemConfig", "TaskTTLConfig",
]  # fmt: skip

T = TypeVar("T")
# Strict: a number in quotes, or `true` for one, is a mistake, and not a number.
Seconds = Annotated[float, Strict(), AllowInfNan(False), Gt(0), Le(31_536_000)]
Flag = Annotated[bool, Strict()]
Pause = Annotated[float, Strict(), AllowInfNan(False), Ge(0), Le(86_400)]
Count = Annotated[int, Strict(), Ge(1), Le(1_000_000)]
Limit = Annotated[int, Strict(), Ge(0), Le(1_000_000)]
Megabytes = Annotated[int, Strict(), Ge(1), Le(100_000_000)]
Port = Annotated[int, Strict(), Ge(1), Le(65_535)]
Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
Restart = Literal["permanent", "transient", "temporary"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
AutoShutdown = Literal["never", "any_significant", "all_significant"]

_SCHEMES = (
    "redis", "rediss", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel", "unix", "embedded",
)  # fmt: skip
_NAMESPACE = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_DATABASE = re.compile(r"(/[0-9]*)?")
_SERVICE_DATABASE = re.compile(r"/[^/@]+(/[0-9]*)?")  # with "@", it is the rest of a password with a slash
_REFERENCE = re.compile(r"[^\s:/\\.]+(\.[^\s:/\\.]+)*:[^\s:]+")  # a file's path is none
_HOST = re.compile(r"[A-Za-z0-9_.:%-]{1,255}")
_ORIGIN = re.compile(r"https?://[^\s/?#]+")
_BUCKET_SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86_400}
_MOST_BUCKETS = 5000
_GROUP = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, validated dataclass whose constructor raises `ConfigError`."""
    made = pydantic_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))(cls)
    validated_init = made.__init__

    def __init__(self: T, **values: Any) -> None:
        try:
            validated_init(self, **values)
        except ValidationError as invalid:
            raise ConfigError(f"{made.__name__}: {_explain(made, invalid)}") from None

    __init__.__qualname__ = f"{made.__name__}.__init__"
    made.__init__ = __init__  # type: ignore[method-assign,assignment]  # narrower errors, the same arguments
    return made  # type: ignore[return-value]  # pydantic types it as its own dataclass


@settings
class AgentWorkerConfig:
    """How one runner works (checklist O04)."""

    workers: Count = 10
    """Worker actors (coroutines) in each process."""
    batch_size: Count = 25
    """Tasks that one worker executes at once. A slot that frees is refilled at once."""
    max_retries: Limit = 5
    """How many times in a row a failed task is put back to be tried again. A finished turn starts the count afresh."""
    heartbeat_interval: Seconds = 5.0
    """Seconds between two heartbeats of a process."""
    missed_heartbeats: Annotated[int, Strict(), Ge(2), Le(100)] = 3
    """A process that misses this many heartbeats is taken for dead, and its tasks are reclaimed."""
    turn_timeout: Seconds = 120.0
    """Seconds that one turn may take, model call and tools included."""
    owner_limit: Limit = 0
    """The most tasks of one owner that all processes of this runner execute at once. Further ones wait until one of
    these is let go, and other owners' tasks pass them by. 0: no limit. A task that may have crashed its processes
    counts, and does not wait for others."""
    processes: Count = 1
    """Operating-system processes of this runner."""
    max_recoveries: Count = 3
    """How many processes may die, without a finished step in between, with no other task to blame: the task was all
    that they held, or they crashed and it was the suspect there. The last of them ends it with `crash_loop`."""
    retry_delay: Seconds = 1.0
    """Seconds before the first retry. Each further one doubles it, with jitter, up to `max_retry_delay`."""
    max_retry_delay: Seconds = 60.0
    """The longest pause between two tries, unless the provider asks for a longer one."""
    missed_heartbeats_threshold: InitVar[Annotated[int, Strict(), Ge(1), Le(100)] | None] = None
    """What 0.1.x called `missed_heartbeats`."""
    missed_heartbeats_grace_period: InitVar[Pause | None] = None
    """Of 0.1.x: seconds beyond them. As many heartbeats more may be missed."""

    def __post_init__(self, threshold: int | None, grace_period: float | None) -> None:
        missed = self.missed_heartbeats if threshold is None else threshold
        missed += math.ceil((grace_period or 0) / self.heartbeat_interval)
        object.__setattr__(self, "missed_heartbeats", max(missed, 2))

    @property
    def lease(self) -> float:
        """Seconds without a heartbeat after which a process is taken for dead."""
        return self.heartbeat_interval * self.missed_heartbeats


@settings
class TaskTTLConfig:
    """Seconds that an ended task is kept (checklist O05)."""

    completed_ttl: Seconds = 3600.0
    failed_ttl: Seconds = 86400.0
    cancelled_ttl: Seconds = 1800.0


@settings
class MaintenanceWorkerConfig:
    """Recovery of what dead processes held, and removal of what is over (checklist O05)."""

    interval: Seconds = 10.0
    """Seconds between two rounds."""
    workers: Count = 1
    """Maintenance actors in each process. One is enough: a round is safe to run in many places at once."""
    task_ttl: TaskTTLConfig = field(default_factory=TaskTTLConfig)
    max_cleanup_batch: Annotated[int, Strict(), Ge(1), Le(1000)] = 100
    """Tasks that one script call reclaims or removes; a round repeats it until nothing is left."""
    metrics_timeline: InitVar[Any] = None
    """Of 0.1.x: accepted, and not needed. What is counted is the same in a whole system: `metrics_config`."""


@settings
class EventsConfig:
    """How long events can be read again."""

    max_per_owner: Count = 10_000
    """Events kept per owner; the oldest go first."""
    ttl: Seconds = 86400.0
    """Seconds after an owner's last event when its stored events go."""


@settings
class MetricsTimelineConfig:
    """What is counted of the tasks, and for how long (checklist O12): `Orchestrator.get_metrics` reads it.

    A timeline may have from 1 to 5,000 buckets. (0.1.x wanted at least 50 of them, for its chart.)
    """

    timeline_duration: Seconds = 3600.0
    """Seconds that the timeline shows."""
    bucket_size: Literal["seconds", "minutes", "hours", "days"] = "minutes"
    """What is counted together: all that happens within one second, minute, hour or day (UTC)."""
    retention_multiplier: Annotated[float, Strict(), AllowInfNan(False), Ge(1), Le(100)] = 2.0
    """Counts are kept for so many times `timeline_duration`."""

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
        """Seconds that one bucket is long."""
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
        """How long the timeline is, for a heading: `90s`, `50m`, `1h`, `7d`. A part of a minute is left out."""
        seconds = int(self.timeline_duration)
        for unit, length in (("d", 86_400), ("h", 3600)):
            if seconds % length == 0:
                return f"{seconds // length}{unit}"
        return f"{seconds // 60}m" if seconds >= 120 else f"{seconds}s"


@settings
class ObservabilityConfig:
    """The dashboard (checklist O11). Its page comes with a later release: this one takes the settings, and checks them.

    Until then, `python -m factorial.supervisor status` draws the system, and `Orchestrator.get_metrics` tells what was
    done. `Orchestrator.run` says so in the log if it is given such a configuration with `enabled=True`.
    """

    enabled: Flag = True
    """Whether the dashboard is wanted."""
    host: str = "127.0.0.1"
    """Address or name to listen on. The default is this machine alone; "0.0.0.0" is everybody who reaches it."""
    port: Port = 8080
    """Port to listen on."""
    cors_origins: Annotated[Sequence[str], AfterValidator(tuple)] = ()
    """Web pages of other origins that may read it, such as "https://intranet.example"; "*" for all of them."""
    dashboard_name: str | None = None
    """Its heading."""

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host):
            raise ValueError(f"host={self.host!r}: give a name or an address alone, such as '127.0.0.1' or '0.0.0.0'")
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"cors_origins: {origin!r} is no origin: write 'https://HOST', without a path, or '*'")


@settings
class RedisConfig:
    """Where the mailboxes are, and how to reach them."""

    url: str = ""
    """redis://, rediss://, unix:// or embedded:DIR (a Valkey of our own with its data in DIR).
    Redis Cluster: any node of it, or several, redis://HOST:PORT,HOST:PORT. Sentinel:
    redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DATABASE.
    Empty: `REDIS_URL`, else `REDIS_HOST` and its companions, else localhost:6379."""
    namespace: str = "factorial"
    """First part of every key: letters, digits, and `_ . : -`. Different namespaces do not see each other."""
    timeout: Seconds = 5.0
    """Seconds to wait for a connection or an answer."""
    retry_for: Pause = 10.0
    """Seconds for which a command is tried again while the server cannot be reached."""

    def __post_init__(self) -> None:
        if self.url:
            check_url("url", self.url)
        if not _NAMESPACE.fullmatch(self.namespace):
            raise ValueError(f"namespace={self.namespace!r}: use 1 to 64 letters, digits, '_', '.', ':' or '-'")

    @property
    def resolved_url(self) -> str:
        """`url`, or what the environment says (checklist I03)."""
        if self.url:
            return self.url
        name, url = "REDIS_URL", os.environ.get("REDIS_URL") or ""
        if not url:
            name = "REDIS_HOST and REDIS_PORT"
            url = redis_url(
                host=os.environ.get("REDIS_HOST") or "localhost",
                port=os.environ.get("REDIS_PORT") or 6379,
                db=os.environ.get("REDIS_DB") or 0,
                password=os.environ.get("REDIS_PASSWORD"),
            )
        try:
            check_url(name, url)
        except ValueError as invalid:
            raise ConfigError(f"in the environment, {invalid}") from None
        return url


@settings
class LoggingConfig:
    """What the processes of a system write to standard error (checklist I10)."""

    level: LogLevel = "info"
    """Lines of this level and above. `FACTORIAL_LOG_LEVEL` in the environment replaces it."""
    format: LogFormat = "text"
    """Lines for people, or JSON objects, one a line. `FACTORIAL_LOG_FORMAT` in the environment replaces it."""

    @property
    def resolved(self) -> "LoggingConfig":
        """With what the environment says instead. Raises `ConfigError`."""
        chosen: dict[str, Any] = {"level": self.level, "format": self.format}
        for name, known in (("level", get_args(LogLevel)), ("format", get_args(LogFormat))):
            variable = f"FACTORIAL_LOG_{name.upper()}"
            if value := os.environ.get(variable, "").strip().lower():
                if value not in known:
                    raise ConfigError(f"in the environment, {variable}={value[:20]!r}: {_hint(value, known)}")
                chosen[name] = value
        return LoggingConfig(**chosen)


@settings
class SupervisorConfig:
    """The root of the supervision tree."""

    strategy: Strategy = "one_for_one"
    """Whom the end of a group or a runner concerns: nobody else, all, or those that were started after it."""
    intensity: Limit = 5
    """Restarts that are accepted within `period`; one more, and the supervisor gives up. Groups and runners that do
    not say otherwise have the same."""
    period: Seconds = 60.0
    """Seconds of the sliding window in which restarts are counted."""
    auto_shutdown: AutoShutdown = "never"
    """Whether the system ends when its significant groups and runners have ended by themselves: one, or all."""
    backoff: Pause = 0.2
    """Seconds before the second restart of the same process within `period`; each further one doubles it. The first
    restart is immediate."""
    max_backoff: Pause = 10.0
    """The longest pause between two restarts, in seconds."""
    grace: Seconds = 30.0
    """Seconds until a process that is asked to stop is killed."""

    @property
    def childrens_grace(self) -> float:
        """Seconds that a process takes to finish or release its work: all of them are out within the grace."""
        return self.grace - min(5.0, self.grace / 4)


@settings
class GroupConfig:
    """Runners that are supervised together: a level of the tree between the root and the runners."""

    name: str
    """Letters, digits, `_` and `-`. Runners name it as their `group`."""
    strategy: Strategy = "one_for_one"
    """Whom the end of one of its runners concerns; the runners are started in the order of the file."""
    intensity: Limit | None = None
    """Restarts of its runners that are accepted within `period`; as in `[supervisor]` if it is not given."""
    period: Seconds | None = None
    """Seconds; as in `[supervisor]` if it is not given."""
    restart: Restart = "permanent"
    """What its parent does when the group has given up: start it again, or leave it ended."""
    significant: Flag = False
    """Whether its end counts for `auto_shutdown`."""

    def __post_init__(self) -> None:
        if not _GROUP.fullmatch(self.name):
            raise ValueError(f"name={self.name!r}: use 1 to 64 letters, digits, '_' or '-'")
        _check_significant(self.significant, self.restart)


@settings
class RunnerSupervisorConfig:
    """How the processes of one runner are supervised."""

    strategy: Strategy = "one_for_one"
    """Whom the end of one of its processes concerns."""
    intensity: Limit | None = None
    """Restarts of its processes that are accepted within `period`; as in `[supervisor]` if it is not given."""
    period: Seconds | None = None
    """Seconds; as in `[supervisor]` if it is not given."""


@settings
class HealthConfig:
    """Beyond what a process is not well, and what happens then."""

    blocked_after: Annotated[float, Strict(), AllowInfNan(False), Ge(0.1), Le(86_400)] = 15.0
    """Seconds without a beat of its event loop after which a process writes its stacks to the log and is replaced."""
    soft_memory_mb: Megabytes | None = None
    """Resident memory, in MB of 1024 * 1024 bytes, beyond which a process is drained and replaced."""
    hard_memory_mb: Megabytes | None = None
    """Resident memory, in the same unit, beyond which a process is killed and replaced."""

    def __post_init__(self) -> None:
        if self.soft_memory_mb and self.hard_memory_mb and self.soft_memory_mb >= self.hard_memory_mb:
            raise ValueError(
                f"soft_memory_mb={self.soft_memory_mb} must be less than hard_memory_mb={self.hard_memory_mb}: "
                "at the first a process is drained, at the second it is killed"
            )

    @property
    def soft_memory(self) -> int | None:
        """`soft_memory_mb` in bytes."""
        return self.soft_memory_mb and self.soft_memory_mb * 1024 * 1024

    @property
    def hard_memory(self) -> int | None:
        """`hard_memory_mb` in bytes."""
        return self.hard_memory_mb and self.hard_memory_mb * 1024 * 1024


@settings
class RunnerConfig:
    """One agent and the processes that run it."""

    agent: str
    """`module:attribute` of the agent."""
    processes: Count | None = None
    """Shorthand for `worker.processes`."""
    group: str | None = None
    """The group that it belongs to; the root itself if it is not given."""
    restart: Restart = "permanent"
    """What its parent does when the runner has given up: start it again, or leave it ended."""
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
        _check_significant(self.significant, self.restart)
        if self.significant and self.group is not None:
            raise ValueError("significant=true: a group has no auto_shutdown; say it of the group, or leave the group")

    @property
    def process_count(self) -> int:
        """How many processes this runner has."""
        return self.processes or self.worker.processes


@settings
class SystemConfig:
    """A whole system: where the mailboxes are, the supervision tree, and its runners (checklist D01)."""

    redis: RedisConfig = field(default_factory=RedisConfig)
    events: EventsConfig = field(default_factory=EventsConfig)
    metrics: MetricsTimelineConfig = field(default_factory=MetricsTimelineConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    supervisor: SupervisorConfig = field(default_factory=SupervisorConfig)
    group: tuple[GroupConfig, ...] = ()
    runner: tuple[RunnerConfig, ...] = ()

    def __post_init__(self) -> None:
        names = [group.name for group in self.group]
        for number, group in enumerate(self.group, 1):
            if group.name in names[: number - 1]:
                raise ValueError(f"[[group]] {number}: name={group.name!r}: another group has this name already")
            if all(runner.group != group.name for runner in self.runner):
                raise ValueError(
                    f"[[group]] {number}: name={group.name!r}: no runner belongs to it; "
                    f"give one of them group = {group.name!r}, or leave the group out"
                )
        for number, runner in enumerate(self.runner, 1):
            if runner.group is not None and runner.group not in names:
                raise ValueError(
                    f"[[runner]] {number}: group={runner.group!r}: there is no such [[group]]; "
                    f"{_hint(runner.group, names)}"
                )
        tables: dict[str, Sequence[GroupConfig | RunnerConfig]] = {"group": self.group, "runner": self.runner}
        for table, entries in tables.items():
            for number, entry in enumerate(entries, 1):
                if entry.significant and self.supervisor.auto_shutdown == "never":
                    raise ValueError(
                        f"[[{table}]] {number}: significant=true means nothing while auto_shutdown in [supervisor] "
                        "is 'never': use 'any_significant' or 'all_significant' there"
                    )

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> "SystemConfig":
        """Read and validate the file at `path`. Raises `ConfigError` that names the file, the key and the mend."""
        with naming(path):
            config = TypeAdapter(cls).validate_python(_read_toml(Path(path)))
            if not config.runner:
                raise ConfigError('there is no [[runner]]: name at least one, with agent = "module:attribute"')
            return config


@contextmanager
def naming(file: str | os.PathLike[str]) -> Iterator[None]:
    """What is wrong with the configuration, found within, is told with the name of its file.

    For those who find later that an agent in it cannot be imported, too.
    """
    try:
        yield
    except ConfigError as mistake:
        raise ConfigError(f"{os.fspath(file)}: {mistake}") from mistake.__cause__
    except ValidationError as invalid:
        raise ConfigError(f"{os.fspath(file)}: {_explain(SystemConfig, invalid)}") from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except FileNotFoundError:
        raise ConfigError("there is no such file") from None
    except OSError as unreadable:
        raise ConfigError(f"it cannot be read: {unreadable.strerror}") from None
    except UnicodeDecodeError as unreadable:
        raise ConfigError(f"it cannot be read: save it as UTF-8 ({unreadable})") from None
    except RecursionError:
        raise ConfigError("it is not valid TOML: brackets are nested too deeply") from None
    except ValueError as malformed:  # TOMLDecodeError, and int()'s own about a number of too many digits
        raise ConfigError(f"it is not valid TOML: {malformed}") from None


def redis_url(
    *, host: str, port: int | str, db: int | str = 0, username: str | None = None, password: str | None = None
) -> str:
    """The URL of a server given in parts."""
    credentials = f"{quote(username or '', safe='')}:{quote(password, safe='')}@" if password else ""
    return f"redis://{credentials}{host}:{port}/{db}"


def check_url(name: str, url: str) -> None:
    """Raise `ValueError` that names the setting, and never shows the password."""
    scheme, separator, rest = url.partition(":")
    if scheme not in _SCHEMES or not separator or not rest.removeprefix("//"):
        known = "redis://, rediss://, redis+cluster://, redis+sentinel://, unix:// or embedded:DIR"
        # What has other characters than a scheme may be a password.
        found = f"; this one begins with {scheme[:20]!r}" if re.fullmatch("[a-z+]+", scheme) else ""
        raise ValueError(f"{name}: begin it with {known}{found}")
    if scheme == "unix":
        _check_socket(name, url)
    elif scheme != "embedded":
        _check_hosts_and_path(name, url)


def _check_socket(name: str, url: str) -> None:
    try:
        hosts = ServerURL.parse(url).hosts
    except ValueError:
        hosts = ()
    if hosts != (("", None),):
        raise ValueError(f"{name}: write it as unix://USER:PASSWORD@/PATH, with a slash in the password as %2F")


def _check_hosts_and_path(name: str, url: str) -> None:
    scheme = url.partition(":")[0]
    of_sentinels = scheme.endswith("+sentinel")
    try:
        path = ServerURL.parse(url).path
    except ValueError:
        path = None
    if path is not None and (_SERVICE_DATABASE if of_sentinels else _DATABASE).fullmatch(path):
        return
    if of_sentinels:
        raise ValueError(
            f"{name}: write it as {scheme}://USER:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/DATABASE: the sentinels, and "
            "the name that they have for the primary (often mymaster)"
        )
    raise ValueError(
        f"{name}: write it as {scheme}://USER:PASSWORD@HOST:PORT/DATABASE, the last two as numbers; several nodes of a "
        "cluster as HOST:PORT,HOST:PORT"
    )


def _check_significant(significant: bool, restart: str) -> None:
    if significant and restart == "permanent":
        raise ValueError(
            "significant=true: what is permanent never ends for good; give it restart = 'transient' or 'temporary'"
        )


def _explain(cls: type, invalid: ValidationError) -> str:
    """For each mistake the place, what is wrong, and what would be right."""
    return "; ".join(
        _complaint(cls, error["loc"], error["type"], error["msg"])
        for error in invalid.errors(include_url=False, include_context=False, include_input=False)
    )


def _complaint(cls: type, location: tuple[int | str, ...], kind: str, message: str) -> str:
    entry, key = _as_written(location)
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{entry}unknown key {key!r}; {_where_it_belongs(cls, location)}"
    if kind in ("missing", "missing_argument"):
        return f"{entry}{key!r} is missing"
    if kind == "tuple_type" and key in ("group", "runner"):
        return f"write [[{key}]], with double brackets: there may be several"
    is_list = kind in ("tuple_type", "sequence_str", "is_instance_of")
    if is_list or (kind == "string_type" and isinstance(location[-1], int)):
        return f'{_table(location)}: give a list of strings, such as ["...", "..."]'
    if kind == "dataclass_type":
        table = _table(location)
        return f"{entry}write it as a table, {f'[{table}]' if key else f'[[{table}]]'}"
    if kind == "value_error":
        return entry + (f"{key}." if key else "") + message.removeprefix("Value error, ")
    return f"{entry}{key!r}: {message[:1].lower()}{message[1:]}"


def _as_written(location: tuple[int | str, ...]) -> tuple[str, str]:
    """Which entry of a list of tables it is, such as `[[runner]] 2: `, and the key within it."""
    if len(location) > 1 and isinstance(location[1], int):
        return f"[[{location[0]}]] {location[1] + 1}: ", ".".join(str(part) for part in location[2:])
    return "", ".".join(str(part) for part in location)


def _table(location: Sequence[int | str]) -> str:
    """The table's name in the file, without brackets."""
    return ".".join(part for part in location if isinstance(part, str))


def _where_it_belongs(cls: type, location: tuple[int | str, ...]) -> str:
    """What to do about a key that is not known at its place."""
    *table, key = location
    here = _tables_and_keys(cls, table)
    for name, kind in here.items():
        if is_dataclass(kind) and str(key) in (f.name for f in fields(kind)):
            return f"it belongs in [{_table([*table, name])}]"
    return _hint(str(key), list(here))


def _tables_and_keys(cls: Any, location: Sequence[int | str]) -> dict[str, Any]:
    """The fields of the settings class that `location` leads to, with their types."""
    for part in location:
        cls = cls.__args__[0] if isinstance(part, int) else get_type_hints(cls)[part]
    return {name: kind for name, kind in get_type_hints(cls).items() if name in cls.__dataclass_fields__}


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known) or 'none'}"


def as_mapping(config: Any) -> Mapping[str, Any]:
    """A settings object as plain data, to hand to another process."""
    plain: Mapping[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return plain


def from_mapping(cls: type[T], data: Mapping[str, Any]) -> T:
    """The settings object that `as_mapping` described."""
    return TypeAdapter(cls).validate_python(data)
