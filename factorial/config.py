"""Every setting, validated once, in one place. A message names the setting and what it takes.

The classes are frozen; each field has a default (checklist I13). `SystemConfig.from_toml` reads the file
of `python -m factorial.supervisor`: its tables have the same names and fields.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_type_hints
from urllib.parse import quote

from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from factorial.errors import ConfigError

__all__ = [
    "AgentWorkerConfig", "EventsConfig", "MaintenanceWorkerConfig", "RedisConfig", "RunnerConfig",
    "SupervisorConfig", "SystemConfig", "TaskTTLConfig",
]  # fmt: skip

T = TypeVar("T")
# Strict: a number in quotes, or `true` for one, is a mistake, and not a number.
Seconds = Annotated[float, Strict(), Gt(0), Le(31_536_000)]
Count = Annotated[int, Strict(), Ge(1), Le(1_000_000)]
Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]

_SCHEMES = ("redis", "rediss", "unix", "embedded")
_NAMESPACE = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, validated dataclass whose constructor raises `ConfigError`."""
    made = pydantic_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))(cls)
    validated_init = made.__init__

    def __init__(self: T, **values: Any) -> None:
        try:
            validated_init(self, **values)
        except ValidationError as invalid:
            raise ConfigError(_explain(made, invalid, where=made.__name__)) from None

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
    max_retries: Annotated[int, Strict(), Ge(0)] = 5
    """How many times in a row a failed task is put back to be tried again. A finished turn starts the count afresh."""
    heartbeat_interval: Seconds = 5.0
    """Seconds between two heartbeats of a process."""
    missed_heartbeats: Annotated[int, Strict(), Ge(2), Le(100)] = 3
    """A process that misses this many heartbeats is taken for dead, and its tasks are reclaimed."""
    turn_timeout: Seconds = 120.0
    """Seconds that one turn may take, model call and tools included."""
    processes: Count = 1
    """Operating-system processes of this runner."""
    max_recoveries: Annotated[int, Strict(), Ge(1)] = 3
    """How many times in a row a task may be reclaimed from a dead process without having finished a turn,
    before it fails with `crash_loop`."""
    retry_delay: Seconds = 1.0
    """Seconds before the first retry. Each further one doubles it, with jitter, up to `max_retry_delay`."""
    max_retry_delay: Seconds = 60.0
    """The longest pause between two tries, unless the provider asks for a longer one."""

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


@settings
class EventsConfig:
    """How long events can be read again."""

    max_per_owner: Count = 10_000
    """Events kept per owner; the oldest go first."""
    ttl: Seconds = 86400.0
    """Seconds after an owner's last event when its stored events go."""


@settings
class RedisConfig:
    """Where the mailboxes are, and how to reach them."""

    url: str = ""
    """redis://, rediss://, unix:// or embedded:DIR (a Valkey of our own with its data in DIR).
    Empty: `REDIS_URL`, else `REDIS_HOST` and its companions, else localhost:6379."""
    namespace: str = "factorial"
    """First part of every key: letters, digits, and `_ . : -`. Different namespaces do not see each other."""
    timeout: Seconds = 5.0
    """Seconds to wait for a connection or an answer."""
    retry_for: Annotated[float, Ge(0), Le(86400)] = 10.0
    """Seconds for which a command is tried again while the server cannot be reached."""

    def __post_init__(self) -> None:
        scheme, separator, rest = self.url.partition(":")
        if self.url and (scheme not in _SCHEMES or not separator or not rest.removeprefix("//")):
            raise ValueError(
                f"url: begin it with redis://, rediss://, unix:// or embedded:DIR; this one begins with {scheme[:20]!r}"
            )
        if not _NAMESPACE.fullmatch(self.namespace):
            raise ValueError(f"namespace={self.namespace!r}: use 1 to 64 letters, digits, '_', '.', ':' or '-'")

    @property
    def resolved_url(self) -> str:
        """`url`, or what the environment says (checklist I03)."""
        if self.url:
            return self.url
        if url := os.environ.get("REDIS_URL"):
            return url
        return redis_url(
            host=os.environ.get("REDIS_HOST") or "localhost",
            port=os.environ.get("REDIS_PORT") or 6379,
            db=os.environ.get("REDIS_DB") or 0,
            password=os.environ.get("REDIS_PASSWORD"),
        )


@settings
class SupervisorConfig:
    """The top of the supervision tree."""

    strategy: Strategy = "one_for_one"
    intensity: Annotated[int, Strict(), Ge(0)] = 5
    """Restarts that are accepted within `period`; one more, and the supervisor gives up."""
    period: Seconds = 60.0
    """Seconds of the sliding window in which restarts are counted."""
    grace: Seconds = 30.0
    """Seconds until a process that is asked to stop is killed."""

    @property
    def childrens_grace(self) -> float:
        """Seconds that a process takes to finish or release its work: all of them are out within the grace."""
        return self.grace - min(5.0, self.grace / 4)


@settings
class RunnerConfig:
    """One agent and the processes that run it."""

    agent: str
    """`module:attribute` of the agent."""
    worker: AgentWorkerConfig = field(default_factory=AgentWorkerConfig)
    maintenance: MaintenanceWorkerConfig = field(default_factory=MaintenanceWorkerConfig)
    processes: Annotated[int, Strict(), Ge(1)] | None = None
    """Shorthand for `worker.processes`."""

    def __post_init__(self) -> None:
        module, _, attribute = self.agent.partition(":")
        if not (module and attribute):
            raise ValueError(
                f"agent={self.agent!r}: write it as 'module:attribute', for example 'myapp.agents:weather'"
            )
        if self.processes is not None and self.worker.processes not in (1, self.processes):
            raise ValueError(
                f"processes={self.processes} and worker.processes={self.worker.processes} contradict each other: "
                "give one of them"
            )

    @property
    def process_count(self) -> int:
        """How many processes this runner has."""
        return self.processes or self.worker.processes


@settings
class SystemConfig:
    """A whole system: where the mailboxes are, the supervision tree, and its runners (checklist D01)."""

    redis: RedisConfig = field(default_factory=RedisConfig)
    events: EventsConfig = field(default_factory=EventsConfig)
    supervisor: SupervisorConfig = field(default_factory=SupervisorConfig)
    runner: tuple[RunnerConfig, ...] = ()

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> "SystemConfig":
        """Read and validate the file at `path`. Raises `ConfigError` that names the file, the key and the mend."""
        file = Path(path)
        try:
            data = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{file}: there is no such file") from None
        except (OSError, UnicodeDecodeError) as unreadable:
            raise ConfigError(f"{file}: it cannot be read: {unreadable}") from None
        except tomllib.TOMLDecodeError as malformed:
            raise ConfigError(f"{file}: it is not valid TOML: {malformed}") from None
        try:
            config = TypeAdapter(cls).validate_python(data)
        except ValidationError as invalid:
            raise ConfigError(_explain(cls, invalid, where=str(file))) from None
        if not config.runner:
            raise ConfigError(f'{file}: there is no [[runner]]: name at least one, with agent = "module:attribute"')
        return config


def redis_url(
    *, host: str, port: int | str, db: int | str = 0, username: str | None = None, password: str | None = None
) -> str:
    """The URL of a server given in parts."""
    credentials = f"{quote(username or '', safe='')}:{quote(password, safe='')}@" if password else ""
    return f"redis://{credentials}{host}:{port}/{db}"


def _explain(cls: type, invalid: ValidationError, where: str) -> str:
    """One line per mistake: the place, what is wrong, and what would be right."""
    return "; ".join(
        f"{where}: {_complaint(cls, error['loc'], error['type'], error['msg'])}"
        for error in invalid.errors(include_url=False, include_context=False, include_input=False)
    )


def _complaint(cls: type, location: tuple[int | str, ...], kind: str, message: str) -> str:
    key = ".".join(str(part) for part in location)
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _keys_at(cls, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    if kind in ("missing", "missing_argument"):
        return f"{key!r} is missing"
    if kind == "tuple_type":
        return f"write [[{key}]], with double brackets: there may be several"
    if kind == "dataclass_type":
        return f"{key!r}: write it as a table, [{key}]"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    return f"{key!r}: {message[:1].lower()}{message[1:]}"


def _keys_at(cls: Any, location: tuple[int | str, ...]) -> list[str]:
    """The field names of the settings class that `location` leads to."""
    for part in location:
        if isinstance(part, str) and is_dataclass(cls):
            cls = get_type_hints(cls)[part]
        elif isinstance(part, int):
            cls = cls.__args__[0]
    return [f.name for f in fields(cls)] if is_dataclass(cls) else []


def as_mapping(config: Any) -> Mapping[str, Any]:
    """A settings object as plain data, to hand to another process."""
    plain: Mapping[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return plain


def from_mapping(cls: type[T], data: Mapping[str, Any]) -> T:
    """The settings object that `as_mapping` described."""
    return TypeAdapter(cls).validate_python(data)
