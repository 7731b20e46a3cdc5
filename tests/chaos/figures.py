"""What the fault tests showed, as a table: each test adds a line, and the run ends by printing them all. The lines
travel with the tests' reports, since several processes may share the run.

    fault("SIGKILL after the model call", tasks=200, lost=0, repeated_steps=3)

`make test` makes short runs, `make chaos` long ones: `long_or_short(5000, 200)`.
"""

import os
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["LONG", "Row", "fault", "long_or_short", "news", "table"]

LONG = os.environ.get("FACTORIAL_CHAOS") == "long"
"""Whether there is time: set by `make chaos`."""

T = TypeVar("T")
Row = tuple[str, str]
"""A fault, and what was counted."""
_rows: list[Row] = []


def long_or_short(long: T, short: T) -> T:
    """The one or the other, as this run is long or short."""
    return long if LONG else short


def fault(what: str, **figures: object) -> None:
    """A fault was survived: what was done, and what was counted or measured meanwhile."""
    _rows.append((what, ", ".join(f"{name.replace('_', ' ')} {figure}" for name, figure in figures.items())))


def news() -> list[Row]:
    """The lines since the last call."""
    rows = list(_rows)
    _rows.clear()
    return rows


def table(rows: Sequence[Row]) -> list[str]:
    """The table, one line a fault."""
    width = max((len(what) for what, _ in rows), default=0)
    return [f"{what:<{width}}  {figures}" for what, figures in rows]
