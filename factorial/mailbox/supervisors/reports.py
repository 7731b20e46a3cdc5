"""The reports of supervisors: each stores a description of its tree, until it ends (`report.lua`, `reports.lua`,
`withdraw.lua`).

Called by the supervisor, and by the commands that show and operate systems.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from factorial._core.json import dump_json, load_json
from factorial.errors import ConfigError
from factorial.mailbox.script import Scripts

__all__ = [
    "LOST_AFTER", "REPORT_INTERVAL", "Report", "checked_name", "is_name", "json_object", "publish", "read_all",
    "withdraw",
]  # fmt: skip

REPORT_INTERVAL = 2.0
"""Seconds between two reports of a supervisor."""
LOST_AFTER = 3 * REPORT_INTERVAL
"""Seconds of silence after which a supervisor counts as lost."""

_FORGOTTEN_AFTER_MS = 3_600_000
_MAX_REPORT = 4_000_000
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


@dataclass(frozen=True, slots=True)
class Report:
    """The latest report of a supervisor."""

    name: str
    age: float
    """Seconds since it was stored, by the server's clock."""
    content: dict[str, Any]

    @property
    def is_lost(self) -> bool:
        """Whether the supervisor has missed so many reports that it must be dead, or cut off from the server."""
        return self.age > LOST_AFTER


async def publish(scripts: Scripts, *, supervisor: str, report: Mapping[str, Any]) -> None:
    """Store the report of `supervisor`. A report that is too large is stored without the children of its tree."""
    written = dump_json(dict(report))
    if len(written) > _MAX_REPORT:
        written = dump_json({**report, "tree": {**report["tree"], "children": []}})
    await scripts.run("report", checked_name(supervisor), written, _FORGOTTEN_AFTER_MS)


async def withdraw(scripts: Scripts, *, supervisor: str) -> None:
    """Forget a supervisor that has ended in an orderly way."""
    await scripts.run("withdraw", checked_name(supervisor))


async def read_all(scripts: Scripts) -> list[Report]:
    """The reports of all supervisors, by name. A lost supervisor is among them for an hour."""
    stored = await scripts.run("reports")
    reports = []
    for name, age, written in zip(stored[::3], stored[1::3], stored[2::3], strict=True):
        content, readable = json_object(written), name.decode(errors="replace")
        if content is not None and is_name(readable):
            reports.append(Report(readable, max(0.0, int(age) / 1000), content))
    return sorted(reports, key=lambda one: one.name)


def json_object(written: bytes) -> dict[str, Any] | None:
    """The JSON object, or None for anything else."""
    try:
        value = load_json(written)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def is_name(text: str) -> bool:
    """Whether `text` is fit to name a supervisor or an order."""
    return _NAME.fullmatch(text) is not None


def checked_name(name: str) -> str:
    """`name`, if it is fit to name a supervisor or an order. Raises `ConfigError` otherwise."""
    if not is_name(name):
        raise ConfigError(f"{name[:140]!r} cannot be a supervisor: use 1 to 128 letters, digits, '_', '.', ':' or '-'")
    return name
