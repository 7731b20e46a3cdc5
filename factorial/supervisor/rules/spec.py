"""The specification of a supervisor: its flags and its children (OTP's supervisor, `check_childspec`).

Pure. Each object validates itself when it is made. A `ConfigError` names the child, and says which values are valid.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from factorial.errors import ConfigError

__all__ = [
    "LEAVE_SECONDS", "AutoShutdown", "ChildExit", "ChildSpec", "ChildType", "ExitReason", "HealthLimits", "Restart",
    "Spec", "Strategy", "SupervisorFlags", "SupervisorSpec", "check_specs",
]  # fmt: skip

LEAVE_SECONDS = 5.0
"""Extension: how long a child that was asked to leave now may take to release its tasks."""

_E = TypeVar("_E", bound=StrEnum)

_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_ID = re.compile(r"[A-Za-z0-9_.-]{1,100}")


class Strategy(StrEnum):
    """Which children are restarted together with one that has ended."""

    ONE_FOR_ONE = "one_for_one"
    """No others."""
    ONE_FOR_ALL = "one_for_all"
    """All siblings. Those that run are terminated first."""
    REST_FOR_ONE = "rest_for_one"
    """The siblings that come after it in the start order. Those that run are terminated first."""


class Restart(StrEnum):
    """Whether a child that ended is started again."""

    PERMANENT = "permanent"
    """Always."""
    TRANSIENT = "transient"
    """Only if it ended abnormally."""
    TEMPORARY = "temporary"
    """Never."""


class ChildType(StrEnum):
    """Whether a child has children of its own."""

    WORKER = "worker"
    SUPERVISOR = "supervisor"


class AutoShutdown(StrEnum):
    """Whether the supervisor ends after its significant children have ended by themselves."""

    NEVER = "never"
    ANY_SIGNIFICANT = "any_significant"
    ALL_SIGNIFICANT = "all_significant"


class ExitReason(StrEnum):
    """Why a child ended."""

    NORMAL = "normal"
    SHUTDOWN = "shutdown"
    ABNORMAL = "abnormal"


@dataclass(frozen=True, slots=True)
class ChildExit:
    """The end of one incarnation of a child."""

    child_id: str
    process: str
    """The unique name of the incarnation."""
    pid: int
    exitcode: int | None
    """Minus the signal's number if a signal ended it; `None` if another process collected its status."""
    signal: str | None
    """The name of the signal that ended it."""
    reason: ExitReason
    asked: bool = False
    """The supervisor had asked it to end."""
    why: str = ""
    """More detail: why it was killed, or why a supervisor gave up."""

    @property
    def how(self) -> str:
        """The end in a few words, such as `SIGKILL` or `exit code 1`, and `why`."""
        if self.signal is None and self.exitcode is None:
            return self.why or str(self.reason)
        how = self.signal or f"exit code {self.exitcode}"
        return f"{how}: {self.why}" if self.why else how

    def __str__(self) -> str:
        return f"{self.process} (pid {self.pid}) ended {'by' if self.signal else 'with'} {self.how}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorFlags:
    """How a supervisor treats its children. The defaults are OTP's. A field marked as extension is not in OTP.

    When a supervisor ends, it asks all its children to stop at once (OTP: one after the other, in reverse order), so
    that a shutdown takes as long as its slowest child.
    """

    strategy: Strategy = Strategy.ONE_FOR_ONE
    intensity: int = 1
    """The number of restarts allowed within `period`. With one more, the supervisor gives up."""
    period: float = 5.0
    """Seconds: the length of the sliding window in which restarts are counted."""
    auto_shutdown: AutoShutdown = AutoShutdown.NEVER
    start_together: bool = False
    """Extension: start all children at once. For children that do not depend on each other."""
    backoff: float = 0.2
    """Extension: seconds before the second restart of the same child within `period`. Each further restart doubles
    it. The first restart is immediate."""
    max_backoff: float = 10.0
    """Extension: the longest pause in seconds. It is shorter where pauses would keep a crash loop below `intensity`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategy", _one_of(Strategy, self.strategy, "strategy"))
        object.__setattr__(self, "auto_shutdown", _one_of(AutoShutdown, self.auto_shutdown, "auto_shutdown"))
        if self.intensity < 0:
            raise ConfigError(f"intensity={self.intensity!r}: use a whole number, 0 or more")
        _check_seconds("period", self.period, positive=True)
        _check_seconds("backoff", self.backoff)
        _check_seconds("max_backoff", self.max_backoff)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthLimits:
    """Extension: the limits beyond which a running child is unhealthy."""

    blocked_after: float = 15.0
    """Seconds without a beat of the child's event loop after which the child is killed and restarted."""
    soft_memory: int | None = None
    """Bytes of resident memory beyond which the child is replaced gracefully."""
    hard_memory: int | None = None
    """Bytes of resident memory beyond which the child is killed and restarted."""

    def __post_init__(self) -> None:
        _check_seconds("blocked_after", self.blocked_after, positive=True)
        for name in ("soft_memory", "hard_memory"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ConfigError(f"{name}={value!r}: use a number of bytes, more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """A child that is a process: what to start, when to start it again, and how to terminate it."""

    id: str
    """Unique within the supervisor. The name of every process that is started for the child begins with it."""
    target: str
    """`module:function` of an `async def function(lifeline, **kwargs)`."""
    kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Plain data (what JSON can hold) for the target. Not in the `repr`, because it may hold a password."""
    restart: Restart = Restart.PERMANENT
    shutdown: float = 5.0
    """Seconds from SIGTERM to SIGKILL."""
    significant: bool = False
    """The supervisor's `auto_shutdown` depends on this child."""
    start_timeout: float = 30.0
    """Extension: seconds to get ready. A start that takes longer has failed."""
    health: HealthLimits = field(default_factory=HealthLimits)
    """Extension."""

    def __post_init__(self) -> None:
        where = _check_child(self)
        if not _TARGET.fullmatch(self.target):
            raise ConfigError(f"{where}target={self.target!r}: write it as 'module:function'")
        if self.target.startswith("__main__:"):
            raise ConfigError(f"{where}target={self.target!r}: put it in a module that another process can import")
        _check_seconds(f"{where}shutdown", self.shutdown)
        _check_seconds(f"{where}start_timeout", self.start_timeout, positive=True)
        try:
            json.dumps(self.kwargs, allow_nan=False)
        except (TypeError, ValueError) as unfit:
            raise ConfigError(f"{where}kwargs must be plain data that JSON can hold: {unfit}") from None

    @property
    def type(self) -> ChildType:
        """A process has no children in the tree."""
        return ChildType.WORKER


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorSpec:
    """A child that is a supervisor itself, or the root: its flags and its children.

    It has no time limit for its end: each of its children has one.
    """

    id: str
    flags: SupervisorFlags = field(default_factory=SupervisorFlags)
    children: "tuple[Spec, ...]" = ()
    restart: Restart = Restart.PERMANENT
    significant: bool = False

    def __post_init__(self) -> None:
        _check_child(self)
        check_specs(self.flags, self.children)

    @property
    def type(self) -> ChildType:
        """A supervisor has children."""
        return ChildType.SUPERVISOR

    @property
    def processes(self) -> "tuple[ChildSpec, ...]":
        """All processes below it, at any depth."""
        return tuple(
            process
            for child in self.children
            for process in (child.processes if isinstance(child, SupervisorSpec) else (child,))
        )


Spec = ChildSpec | SupervisorSpec


def check_specs(flags: SupervisorFlags, specs: Sequence[Spec]) -> None:
    """Raise `ConfigError` unless the ids are unique, and `significant` agrees with `auto_shutdown`."""
    seen: set[str] = set()
    for spec in specs:
        if spec.id in seen:
            raise ConfigError(f"there are two children with the id {spec.id!r}: ids must be unique")
        seen.add(spec.id)
        if spec.significant and flags.auto_shutdown is AutoShutdown.NEVER:
            raise ConfigError(f"child {spec.id!r}: significant has no effect while auto_shutdown is 'never'")


def _check_child(spec: Spec) -> str:
    """Check what both kinds of children have in common. Returns the beginning of messages about this one."""
    if not _ID.fullmatch(spec.id):
        raise ConfigError(f"child id {spec.id!r}: use 1 to 100 letters, digits, '_', '.' or '-'")
    where = f"child {spec.id!r}: "
    object.__setattr__(spec, "restart", _one_of(Restart, spec.restart, f"{where}restart"))
    if spec.significant and spec.restart is Restart.PERMANENT:
        raise ConfigError(f"{where}significant: a permanent child never ends for good; use transient or temporary")
    return where


def _one_of(kind: type[_E], value: str, name: str) -> _E:
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(f"{name}={value!r}: use one of {', '.join(kind)}") from None


def _check_seconds(name: str, value: float, *, positive: bool = False) -> None:
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ConfigError(f"{name}={value!r}: use a number of seconds, {'more than 0' if positive else '0 or more'}")
