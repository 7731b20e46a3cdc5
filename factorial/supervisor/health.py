"""Whether a child that has not ended is well. Pure: no process, no clock.

`monitor` collects what is judged here, and acts on the verdict.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from factorial.supervisor.spec import HealthLimits

__all__ = ["PACE", "SETTLED_SECONDS", "Figures", "Kill", "Replace", "Verdict", "Well", "judge", "pace"]

PACE = 1.0
"""Seconds between two beats of a child, and between two looks at it, unless its limits ask for more."""
SETTLED_SECONDS = 10.0
"""How old a child must be to be replaced for its memory. A soft limit below what the agent needs to be imported would
have every successor replaced as it gets ready, and a replacement counts against no limit."""

_BEATS_UNTIL_BLOCKED = 5
_MB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Figures:
    """What is known about a process. `None`: not known, or not yet."""

    gauges: Mapping[str, float] = field(default_factory=dict)
    """What its latest beat carried: `lag`, the seconds by which its event loop was late, and what the child
    measures itself (`Lifeline.gauge`), such as `tasks`."""
    rss: int | None = None
    """Bytes of resident memory, without its own children's."""
    cpu: float | None = None
    """Percent of one processor since the figures before."""
    open_files: int | None = None
    """Open descriptors of any kind."""
    descendants: int | None = None
    """Processes below it, at whatever depth."""

    def report(self) -> dict[str, float]:
        """What is known, by its name."""
        usage = {"rss": self.rss, "cpu": self.cpu, "open_files": self.open_files, "descendants": self.descendants}
        return {**self.gauges, **{name: value for name, value in usage.items() if value is not None}}


@dataclass(frozen=True, slots=True)
class Well:
    """Nothing is to be done."""


@dataclass(frozen=True, slots=True)
class Replace:
    """Start a successor, and have it drain then."""

    why: str


@dataclass(frozen=True, slots=True)
class Kill:
    """It does no good any more: end it at once."""

    why: str
    stacks: bool = False
    """Its stacks say what is wrong with it: have it write them first."""


Verdict = Well | Replace | Kill


def pace(limits: HealthLimits) -> float:
    """Seconds between two beats, and between two looks: several fit into the time that a child may be silent."""
    return min(PACE, limits.blocked_after / _BEATS_UNTIL_BLOCKED)


def judge(limits: HealthLimits, figures: Figures, silence: float, age: float) -> Verdict:
    """Judge a child that is ready. `silence`: seconds since its last beat in which the supervisor itself was awake;
    `age`: seconds since it became ready."""
    rss = figures.rss or 0
    if limits.hard_memory is not None and rss > limits.hard_memory:
        return Kill(_too_much(rss, "hard_memory_mb", limits.hard_memory))
    if silence >= limits.blocked_after:
        return Kill(f"its event loop was blocked for {silence:.1f} s", stacks=True)
    if limits.soft_memory is not None and rss > limits.soft_memory and age >= SETTLED_SECONDS:
        return Replace(_too_much(rss, "soft_memory_mb", limits.soft_memory))
    return Well()


def _too_much(rss: int, name: str, limit: int) -> str:
    """`name`: as the configuration file calls the limit."""
    return f"its memory was {rss / _MB:.0f} MB, and {name} is {limit / _MB:.0f}"
