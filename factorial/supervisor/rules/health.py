"""Whether a running child is healthy. Pure: no process, no clock.

`process/monitor.py` collects the figures and acts on the verdict.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from factorial.supervisor.rules.spec import HealthLimits

__all__ = ["PACE", "SETTLED_SECONDS", "Figures", "Kill", "Replace", "Verdict", "Well", "judge", "pace"]

PACE = 1.0
"""Seconds between two beats of a child, and between two checks of it, unless its limits need shorter ones."""
SETTLED_SECONDS = 10.0
"""The age in seconds below which a child is not replaced for its memory. With a soft limit below what the import of the
agent needs, every successor would be replaced as soon as it is ready, and replacements are not limited in number."""

_BEATS_UNTIL_BLOCKED = 5
_MB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of a process. `None`: unknown, or not measured yet."""

    gauges: Mapping[str, float] = field(default_factory=dict)
    """The content of its latest beat: `lag`, the seconds by which its event loop was late, and what the child measures
    itself (`Lifeline.gauge`), such as `tasks`."""
    rss: int | None = None
    """Bytes of resident memory, without that of its own children."""
    cpu: float | None = None
    """Percent of one processor since the previous measurement."""
    open_files: int | None = None
    """The number of open descriptors of any kind."""
    descendants: int | None = None
    """The number of processes below it, at any depth."""

    def report(self) -> dict[str, float]:
        """All known figures, by name."""
        usage = {"rss": self.rss, "cpu": self.cpu, "open_files": self.open_files, "descendants": self.descendants}
        return {**self.gauges, **{name: value for name, value in usage.items() if value is not None}}


@dataclass(frozen=True, slots=True)
class Well:
    """The child is healthy."""


@dataclass(frozen=True, slots=True)
class Replace:
    """Start a successor, then drain the child."""

    why: str


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill the child."""

    why: str
    stacks: bool = False
    """Have it write its stacks first, because they show the cause."""


Verdict = Well | Replace | Kill


def pace(limits: HealthLimits) -> float:
    """Seconds between two beats, and between two checks. Several fit into the time for which a child may be silent."""
    return min(PACE, limits.blocked_after / _BEATS_UNTIL_BLOCKED)


def judge(limits: HealthLimits, figures: Figures, silence: float, age: float) -> Verdict:
    """Judge a child that is ready. `silence`: seconds since its last beat during which the supervisor itself ran.
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
    """`name`: the name of the limit in the configuration file."""
    return f"its memory was {rss / _MB:.0f} MB, and {name} is {limit / _MB:.0f}"
