"""Formats the status of supervisors as text. Pure.

For each supervisor there is a line with its name and place, a line that says that all is well or lists what is wrong,
and its tree. The queues follow at the end. No line is longer than `_WIDTH`: lines about what is wrong are wrapped, all
others are cut. `status --json` has everything at full length.
"""

import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Subject", "draw", "span"]

_WIDTH = 120

_COLUMNS = ("  NODE", "STATE", "PID", "UPTIME", "RESTARTS", "TASKS", "RSS", "CPU", "FILES", "LAG", "LAST EXIT")
_TO_THE_RIGHT = {"PID", "UPTIME", "TASKS", "RSS", "CPU", "FILES", "LAG"}
_LONGEST_NAME = 40
_MOST_NAMED = 5
_MOST_LINES = 6
"""The most lines about one thing that is wrong."""
_SILENT_AFTER = 3.0
"""Seconds without a beat of the event loop after which it is shown as silent."""
_WELL = "running"
_DEGRADED = "degraded"
_DRAINED = "drained"
_GAVE_UP = "gave up"

_Node = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Subject:
    """One supervisor: its report, and the age of the report."""

    report: Mapping[str, Any]
    age: float
    """Seconds."""
    is_lost: bool


def draw(
    subjects: Sequence[Subject], queues: Mapping[str, Mapping[str, int]], notes: Sequence[tuple[str, str]] = ()
) -> str:
    """The text for all supervisors and the queues.

    `queues`: for each agent its numbers of tasks, by the name of the column. All agents have the same columns.
    `notes`: what else an operator should know, each with its subject, such as an agent.
    """
    blocks = [_supervisor(subject) for subject in subjects]
    marked = [part for subject, note in sorted(notes) for part in _wrapped(f"! {_text(subject)}: {_text(note)}")]
    if queues:
        columns = tuple(name.upper() for name in next(iter(queues.values())))
        rows = [(f"  {_text(agent)}", *map(str, counts.values())) for agent, counts in sorted(queues.items())]
        blocks.append([*_table(("  QUEUE", *columns), rows, to_the_right=columns), *marked])
    elif marked:
        blocks.append(marked)
    return "\n\n".join("\n".join(_fitted(line) for line in block) for block in blocks)


def _supervisor(subject: Subject) -> list[str]:
    report = subject.report
    tree = report.get("tree") or {}
    place = f"pid {_text(report.get('pid'))} on {_text(report.get('host'))}"
    name = _text(report.get("supervisor"))
    if subject.is_lost:
        lost = f"! {name}  LOST, last heard of {span(subject.age)} ago  ({place})"
        return [
            *_wrapped(lost),
            f"  it had {_counted(tree)}; other processes continue their tasks when their leases have expired",
        ]
    about = [place, f"factorial {_text(report.get('version'))}"]
    if report.get("config"):
        about.append(_text(report["config"]))
    return [f"  {name}  {_stage(report, tree)}  ({', '.join(about)})", *_health(tree), "", *_drawn(tree)]


def _stage(report: Mapping[str, Any], tree: _Node) -> str:
    """The state of the supervisor as a whole, and its uptime."""
    state = _text(report.get("state"))
    if state == _WELL and tree.get("state") == "starting":
        state = "starting"
    up = span(report.get("uptime"))
    return f"{state} for {up}" if state == _WELL else f"{state} (up {up})"


def _health(tree: _Node) -> list[str]:
    """A line that says that all is well, or one for each of the first things that are wrong."""
    counted = _counted(tree)
    troubles = list(_troubles(tree))
    if not troubles and any(_processes(tree)):
        return [f"  all is well: {counted}"]
    lines = [counted, *troubles[:_MOST_NAMED]]
    if more := len(troubles[_MOST_NAMED:]):
        lines.append(f"and {more} more")
    return [part for line in lines for part in _wrapped(f"! {line}")]


def _troubles(node: _Node) -> Iterable[str]:
    """What is wrong with the node and those below it, without the children of a supervisor that is drained, starting or
    ending as a whole."""
    if not node:
        return
    state = _state(node)
    if _is_supervisor(node):
        if restarts := node.get("restarts"):
            yield _used_up(node, restarts)
        if state in (_WELL, _DEGRADED):
            for child in _children(node):
                yield from _troubles(child)
            return
    if state != _WELL:
        yield _not_running(node, state)
    for process in (node, *_predecessors(node)):
        if _is_silent(process):
            yield f"{_name(process)}: its event loop is silent for {process['lag']:.0f} s"


def _used_up(node: _Node, restarts: int) -> str:
    allowed = f"{_dash(restarts)} of {_plural(node.get('intensity'), 'restart')} used in {_seconds(node.get('period'))}"
    ended = [child for child in _children(node) if child.get("last_exit") not in (None, "shutdown")]
    last = min(ended, key=lambda child: child.get("last_exit_ago") or 0.0, default=None)
    return f"{_name(node)}: {allowed}" + (f", the last: {_text(last['last_exit'])}" if last else "")


def _not_running(node: _Node, state: str) -> str:
    name, how = _name(node), node.get("last_exit")
    if state == _GAVE_UP:
        ago = node.get("last_exit_ago")
        when = "" if ago is None else f" {span(ago)} ago"
        return f"{name} {_GAVE_UP}{when}" + (f": {_text(how).removeprefix('gave up: ')}" if how else "")
    line = f"{name} has ended" if state == "ended" else f"{name} is {state}"
    return f"{line}; its last exit: {_last_exit(node)}" if how and state != _DRAINED else line


def _counted(tree: _Node) -> str:
    """How many of its processes run, and how many tasks they hold. A supervisor that gave up may have no children in
    the report, so it is named."""
    processes = list(_processes(tree))
    running = sum(node.get("state") == _WELL for node in processes)
    tasks = sum(int(each.get("tasks") or 0) for node in processes for each in (node, *_predecessors(node)))
    counted = f"{running} of {_plural(len(processes), 'process', 'es')} running, {_plural(tasks, 'task')} in flight"
    gone = [_name(node) for node in _walk(tree) if _state(node) == _GAVE_UP and not _children(node)]
    return f"{counted}; {', '.join(gone)} {_GAVE_UP}" if gone else counted


def _state(node: _Node) -> str:
    """The state of a node, in one or two words. The state of a running supervisor summarises its processes: all
    running, all drained, or degraded."""
    state = _text(node.get("state"))
    if not _is_supervisor(node) or state != _WELL:
        return state
    below = [each.get("state") for each in _walk(node) if each is not node and not _children(each)]
    if below and all(each == _DRAINED for each in below):
        return _DRAINED
    return _WELL if all(each == _WELL for each in below) else _DEGRADED


def _is_silent(process: _Node) -> bool:
    return (process.get("lag") or 0.0) >= _SILENT_AFTER


def _walk(node: _Node) -> Iterable[_Node]:
    if node:
        yield node
        for child in _children(node):
            yield from _walk(child)


def _processes(node: _Node) -> Iterable[_Node]:
    return (each for each in _walk(node) if each.get("type") == "worker")


def _children(node: _Node) -> Sequence[_Node]:
    return _nodes(node.get("children")) if _is_supervisor(node) else []


def _predecessors(node: _Node) -> Sequence[_Node]:
    """The processes that drain because `node` has replaced them."""
    return [{"id": each.get("process"), **each, "state": "draining"} for each in _nodes(node.get("predecessors"))]


def _nodes(value: Any) -> list[_Node]:
    return [each for each in value or () if isinstance(each, Mapping)]


def _is_supervisor(node: _Node) -> bool:
    return node.get("type") == "supervisor"


def _drawn(tree: _Node) -> list[str]:
    return _table(_COLUMNS, list(_rows(tree)), _TO_THE_RIGHT)


def _rows(node: _Node, stem: str = "", branch: str = "", *, is_expected: bool = False) -> Iterable[Sequence[str]]:
    """The rows of a node and of all below it. `is_expected`: the node does not run, and that is intended."""
    is_well = (is_expected or _state(node) == _WELL) and not _is_silent(node)
    is_well = is_well and not (_is_supervisor(node) and node.get("restarts"))
    name = ("  " if is_well else "! ") + stem + branch + _shortened(_name(node), _LONGEST_NAME)
    yield (name, *(_supervisor_cells(node) if _is_supervisor(node) else _process_cells(node)), _last_exit(node))
    stem += {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
    predecessors = _predecessors(node)
    below = [*predecessors, *_children(node)]
    for number, each in enumerate(below, 1):
        is_leaving = number <= len(predecessors)
        yield from _rows(each, stem, "└─ " if number == len(below) else "├─ ", is_expected=is_leaving)


def _supervisor_cells(node: _Node) -> Sequence[str]:
    processes = list(_processes(node))
    running = sum(process.get("state") == _WELL for process in processes)
    state = f"{_state(node)} {running}/{len(processes)}" if processes else _state(node)
    restarts = f"{_dash(node.get('restarts'))}/{_dash(node.get('intensity'))} in {_seconds(node.get('period'))}"
    return (state, "", "", restarts, "", "", "", "", "")


def _process_cells(node: _Node) -> Sequence[str]:
    cpu, lag = node.get("cpu"), node.get("lag")
    return (
        _state(node),
        _dash(node.get("pid")),
        span(node.get("uptime")),
        _dash(node.get("restarts")),
        _dash(node.get("tasks")),
        _size(node.get("rss")),
        "-" if cpu is None else f"{cpu:.0f}%",
        _dash(node.get("open_files")),
        "-" if lag is None else f"{lag * 1000:.0f} ms" if lag < _SILENT_AFTER else f"{lag:.0f} s",
    )


def _last_exit(node: _Node) -> str:
    """When it ended, and how. The detail comes last, because lines are cut on the right."""
    ago = node.get("last_exit_ago")
    return _dash(node.get("last_exit")) if ago is None else f"{span(ago)} ago: {_text(node.get('last_exit'))}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], to_the_right: Collection[str]) -> list[str]:
    """Aligned columns, two blanks apart."""
    table = [columns, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    return [
        "  ".join(
            cell.rjust(width) if column in to_the_right else cell.ljust(width)
            for column, cell, width in zip(columns, row, widths, strict=True)
        ).rstrip()
        for row in table
    ]


def _wrapped(line: str) -> list[str]:
    """`line`, wrapped to as many lines as it needs, up to a limit."""
    return textwrap.wrap(
        line, _WIDTH, subsequent_indent="    ", break_on_hyphens=False, max_lines=_MOST_LINES, placeholder=" …"
    )


def _fitted(line: str) -> str:
    return _shortened(line, _WIDTH)


def _shortened(text: str, limit: int) -> str:
    """`text`, cut to `limit` characters with a mark at its end."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _plural(count: object, noun: str, ending: str = "s") -> str:
    return f"{_dash(count)} {noun}" if count == 1 else f"{_dash(count)} {noun}{ending}"


def _name(node: _Node) -> str:
    return _text(node.get("id"))


def _text(value: object) -> str:
    return "?" if value is None else _printable(value)


def _dash(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "-" if value is None else _printable(value)


def _printable(value: object) -> str:
    """`value` on one line, without control characters."""
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


def _size(number: float | None) -> str:
    """Bytes in units of 1024: `182M`, `1.4G`."""
    if number is None:
        return "-"
    for unit, length in (("G", 1024**3), ("M", 1024**2), ("K", 1024)):
        if number >= length:
            value = number / length
            return f"{value:.1f}{unit}" if value < 10 else f"{value:.0f}{unit}"
    return f"{number:.0f}B"
