"""The status of supervisors as text, for an engineer who was woken at night. Pure.

For each supervisor one line that says who and where it is, one that says whether all is well, or which nodes are not,
and its tree. In the end the queues. No line is longer than WIDTH; `status --json` has everything at full length.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Subject", "draw"]

WIDTH = 120

_COLUMNS = ("  NODE", "STATE", "PID", "UPTIME", "RESTARTS", "TASKS", "RSS", "CPU", "FILES", "LAG", "LAST EXIT")
_QUEUE_COLUMNS = ("  QUEUE", "READY", "SUSPECTS", "BACKOFF", "HELD")
_TO_THE_RIGHT = {"PID", "UPTIME", "TASKS", "RSS", "CPU", "FILES", "LAG", *_QUEUE_COLUMNS[1:]}
_LONGEST_NAME = 40
_MOST_NAMED = 5
_WELL = "running"

Node = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Subject:
    """One supervisor: its report, and how long ago that was made."""

    report: Mapping[str, Any]
    age: float
    """Seconds."""
    is_lost: bool


def draw(subjects: Sequence[Subject], queues: Mapping[str, Sequence[int]]) -> str:
    """All supervisors, one below the other, and the queues.

    `queues`: for each agent how many tasks are ready, suspects that wait, in backoff, and held.
    """
    blocks = [_supervisor(subject) for subject in subjects]
    if queues:
        rows = [(f"  {_text(agent)}", *map(str, counts)) for agent, counts in sorted(queues.items())]
        blocks.append(_table(_QUEUE_COLUMNS, rows))
    return "\n\n".join("\n".join(_fitted(line) for line in block) for block in blocks)


def _supervisor(subject: Subject) -> list[str]:
    report = subject.report
    tree = report.get("tree") or {}
    place = f"pid {_text(report.get('pid'))} on {_text(report.get('host'))}"
    name = _text(report.get("supervisor"))
    if subject.is_lost:
        heard = f"! {name}  LOST, last heard of {span(subject.age)} ago  ({place})"
        return [
            heard,
            f"  it had {_counted(list(_workers(tree)))}; their tasks go on elsewhere when their leases are over",
        ]
    about = [place, f"factorial {_text(report.get('version'))}"]
    if report.get("config"):
        about.append(_text(report["config"]))
    head = f"{name}  {_text(report.get('state'))} for {span(report.get('uptime'))}  ({', '.join(about)})"
    return [f"  {head}", *_health(tree), "", *_table(_COLUMNS, list(_rows(tree)))]


def _health(tree: Node) -> list[str]:
    """Whether all is well; else a line for each of the first nodes that are not."""
    counted = _counted(list(_workers(tree)))
    troubled = [node for node in _walk(tree) if node.get("state") != _WELL]
    if not troubled:
        return [f"  all is well: {counted}"]
    lines = [f"! {counted}"]
    for node in troubled[:_MOST_NAMED]:
        last_exit = f"; its last exit: {_last_exit(node)}" if node.get("last_exit") else ""
        lines.append(f"! {_text(node.get('id'))} is {_text(node.get('state'))}{last_exit}")
    if more := len(troubled) - _MOST_NAMED:
        lines += [f"! and {more} more"] if more > 0 else []
    return lines


def _counted(workers: Sequence[Node]) -> str:
    running = sum(node.get("state") == _WELL for node in workers)
    tasks = sum(node.get("tasks") or 0 for node in workers)
    processes = "1 process" if len(workers) == 1 else f"{len(workers)} processes"
    return f"{running} of {processes} running, {int(tasks)} tasks in flight"


def _walk(node: Node) -> Iterable[Node]:
    if node:
        yield node
        for child in _children(node):
            yield from _walk(child)


def _workers(node: Node) -> Iterable[Node]:
    return (each for each in _walk(node) if each.get("type") == "worker")


def _children(node: Node) -> Sequence[Node]:
    return [child for child in node.get("children") or () if isinstance(child, Mapping)] if _is_group(node) else []


def _is_group(node: Node) -> bool:
    # A worker's "children" are the number of its own processes.
    return node.get("type") == "supervisor"


def _rows(node: Node, stem: str = "", branch: str = "") -> Iterable[Sequence[str]]:
    mark = "  " if node.get("state") == _WELL else "! "
    name = mark + stem + branch + shortened(_text(node.get("id")), _LONGEST_NAME)
    yield (name, *(_group_cells(node) if _is_group(node) else _worker_cells(node)), _last_exit(node))
    stem += {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
    children = _children(node)
    for child in children:
        yield from _rows(child, stem, "└─ " if child is children[-1] else "├─ ")


def _group_cells(node: Node) -> Sequence[str]:
    children = _children(node)
    running = sum(child.get("state") == _WELL for child in children)
    restarts = f"{_dash(node.get('restarts'))}/{_dash(node.get('intensity'))} in {_seconds(node.get('period'))}"
    return (f"{_text(node.get('state'))} {running}/{len(children)}", "", "", restarts, "", "", "", "", "")


def _worker_cells(node: Node) -> Sequence[str]:
    cpu, lag = node.get("cpu"), node.get("lag")
    return (
        _text(node.get("state")),
        _dash(node.get("pid")),
        span(node.get("uptime")),
        _dash(node.get("restarts")),
        _dash(node.get("tasks")),
        size(node.get("rss")),
        "-" if cpu is None else f"{cpu:.0f}%",
        _dash(node.get("open_files")),
        "-" if lag is None else f"{lag * 1000:.0f} ms" if lag < 10 else f"{lag:.0f} s",
    )


def _last_exit(node: Node) -> str:
    """When, and how: what is cut off on the right is the detail."""
    ago = node.get("last_exit_ago")
    return _dash(node.get("last_exit")) if ago is None else f"{span(ago)} ago: {_text(node.get('last_exit'))}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns, two blanks apart."""
    table = [columns, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    return [
        "  ".join(
            cell.rjust(width) if column in _TO_THE_RIGHT else cell.ljust(width)
            for column, cell, width in zip(columns, row, widths, strict=True)
        ).rstrip()
        for row in table
    ]


def _fitted(line: str) -> str:
    return shortened(line, WIDTH)


def shortened(text: str, limit: int) -> str:
    """`text`, with a mark at its end if it had to be cut to `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _text(value: object) -> str:
    return "?" if value is None else _printable(value)


def _dash(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "-" if value is None else _printable(value)


def _printable(value: object) -> str:
    """On one line, and without what a terminal would take for an instruction."""
    return " ".join("".join(each if each.isprintable() else " " for each in str(value)).split())


def _seconds(value: object) -> str:
    return f"{value:g} s" if isinstance(value, int | float) else "? s"


def span(seconds: float | None) -> str:
    """A time span in its two largest units: `45s`, `12m05s`, `3h12m`, `2d04h`."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    for unit, smaller, length, name in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if whole >= unit:
            return f"{whole // unit}{length}{whole % unit // smaller:02d}{name}"
    return f"{whole}s"


def size(number: float | None) -> str:
    """Bytes in units of 1024: `182M`, `1.4G`."""
    if number is None:
        return "-"
    for unit, length in (("G", 1024**3), ("M", 1024**2), ("K", 1024)):
        if number >= length:
            value = number / length
            return f"{value:.1f}{unit}" if value < 10 else f"{value:.0f}{unit}"
    return f"{number:.0f}B"
