"""What the fault tests showed, as a table: each test adds a line, and the run ends by printing them all.

    fault("SIGKILL after the model call", tasks=200, lost=0, repeated_steps=3)

`make test` makes short runs, `make chaos` long ones: `long_or_short(5000, 200)`.
"""

import os
from typing import TypeVar

__all__ = ["LONG", "fault", "long_or_short", "table"]

LONG = os.environ.get("FACTORIAL_CHAOS") == "long"
"""Whether there is time: set by `make chaos`."""

T = TypeVar("T")
_rows: list[tuple[str, str]] = []


def long_or_short(long: T, short: T) -> T:
    """The one or the other, as this run is long or short."""
    return long if LONG else short


def fault(what: str, **figures: object) -> None:
    """A fault was survived: what was done, and what was counted or measured meanwhile."""
    _rows.append((what, ", ".join(f"{name.replace('_', ' ')} {figure}" for name, figure in figures.items())))


def table() -> list[str]:
    """The faults of this run, one a line; empty if there were none."""
    width = max((len(what) for what, _ in _rows), default=0)
    return [f"{what:<{width}}  {figures}" for what, figures in _rows]
