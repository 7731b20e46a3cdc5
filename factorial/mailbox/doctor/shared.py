"""Reads what belongs to more than one run: queues, processes, counts, and the stored events that report an end."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from factorial.mailbox.doctor.reader import Reader, number, pairs, text
from factorial.mailbox.doctor.stored import Batch, PlacedAt, Process, Run
from factorial.mailbox.places import PLACES

__all__ = ["Shared", "event_number", "read_ends", "read_shared"]

_EVENTS = 100
"""The number of events that one command asks for. An event may be long."""
_SHARED = {
    *(place.kind for place in PLACES if not place.is_final),
    "running", "passed", "wake", "claims", "events", "owner", "batch",
}  # fmt: skip
_END_EVENT = re.compile(rb'{"event_type":"run_(completed|failed|cancelled)","task_id":"([^"]*)"')

_EventId = tuple[int, int]


@dataclass(slots=True)
class Shared:
    """Queues, processes and counts. They are read before the runs."""

    names: dict[str, set[str]]
    """By kind: the names of the keys that do not belong to one run."""
    processes: dict[str, Process]
    """By name."""
    passed: dict[str, tuple[str, ...]]
    """By agent: the processes that passed its wake token on."""
    wake: dict[str, bool]
    """By agent with a queue: whether it has a wake token."""
    active: dict[str, int]
    """By owner: the stored count of its active runs."""
    running: dict[tuple[str, str], int]
    """By agent and owner: the stored count of held runs."""
    batches: dict[str, Batch]
    """By id: what the batch counts."""
    doomed: int
    """The number of runs that maintenance must still cancel."""
    standing: dict[str, tuple[PlacedAt, ...]] = field(default_factory=dict)
    """By run: its places among the ready queues, the queues of suspects, and the held runs."""
    ends: dict[str, list[tuple[_EventId, str]]] = field(default_factory=dict)
    """By run: the events that report its end, each as its id and the status."""
    streams: dict[str, _EventId] = field(default_factory=dict)
    """By owner whose events were read: the id of the oldest event."""

    @property
    def suspects(self) -> dict[str, tuple[str, ...]]:
        """By run: the processes that have a note that it is their suspect."""
        noted: dict[str, tuple[str, ...]] = defaultdict(tuple)
        for process in self.processes.values():
            if process.suspect:
                noted[process.suspect] += (process.name,)
        return noted

    def note_keys_of(self, runs: Iterable[Run]) -> None:
        """Add the keys where these runs may be at a later read. An empty queue has no key, so no scan returns it."""
        for run in runs:
            if run.status:
                self.names["owner"].add(run.owner)
                for kind in (*(place.kind for place in PLACES if place.is_queue), "running", "passed"):
                    self.names[kind].add(run.agent)


async def read_shared(reader: Reader, names: dict[str, set[str]] | None = None) -> Shared:
    """Everything that belongs to more than one run. `names`: the keys, if they are known from an earlier read."""
    keys = reader.keys
    names = await _shared_names(reader) if names is None else names
    [registered, doomed] = await reader.ask([
        ("ZRANGE", keys.key("processes"), 0, -1), ("LLEN", keys.key("doomed")),
    ])  # fmt: skip
    registered = {text(name) for name in registered or ()}
    names["held"] |= registered
    claims = await reader.ask_of_all("claims", names["held"] | names["claims"], "HMGET", "agent", "suspect")
    leases = await reader.ask_of_all("lease", claims, "EXISTS")
    counts = await reader.ask_of_all("owner", names["owner"], "HGET", "active")
    running = await reader.ask_of_all("running", names["running"], "HGETALL")
    batches = await reader.ask_of_all("batch", names["batch"], "HMGET", "total", "ended", "active")
    passed = await reader.ask_of_all("passed", names["passed"], "SMEMBERS")
    tokens = await reader.ask_of_all("wake", names["ready"] | names["suspects"] | names["wake"], "EXISTS")
    shared = Shared(
        names=names,
        processes={
            name: _process(name, about, bool(leases[name]), name in registered) for name, about in claims.items()
        },
        passed={agent: tuple(sorted(map(text, members or ()))) for agent, members in passed.items()},
        wake={agent: bool(there) for agent, there in tokens.items()},
        active={owner: number(count) for owner, count in counts.items() if count is not None},
        running={
            (agent, text(owner)): number(count)
            for agent, counted in running.items()
            for owner, count in pairs(counted or ())
        },
        batches={name: _batch(counted) for name, counted in batches.items()},
        doomed=doomed or 0,
    )
    for place in PLACES:
        for name in sorted(names[place.kind]) if not place.is_searchable else ():
            await _note_standing(reader, shared, place.kind, name)
    return shared


def _process(name: str, about: Sequence[bytes] | None, is_alive: bool, is_registered: bool) -> Process:
    agent, suspect = map(text, about or ("", ""))
    return Process(name, agent, suspect, is_alive, is_registered)


def _batch(counted: Sequence[bytes] | None) -> Batch:
    total, ended, active = map(number, counted or ("", "", ""))
    return Batch(total, ended, active)


async def _shared_names(reader: Reader) -> dict[str, set[str]]:
    names: dict[str, set[str]] = defaultdict(set)
    async for piece in reader.names():
        for kind, name in piece:
            if kind in _SHARED:
                names[kind].add(name)
    return names


async def _note_standing(reader: Reader, shared: Shared, kind: str, name: str) -> None:
    place, standing, pieces = ((kind, name),), shared.standing, 0
    async for ids in reader.members(kind, name):
        pieces += 1
        may_repeat = kind == "held" or pieces > 1  # an id that moves while the list is read may be in two pieces
        for id in ids:
            before = standing.get(id, ())
            if not (may_repeat and place[0] in before):
                standing[id] = before + place if before else place
                if kind == "held":
                    shared.processes[name].held += 1


async def read_ends(reader: Reader, shared: Shared, owners: Iterable[str]) -> None:
    """Read which of the owners' stored events report the end of a run."""
    for owner in owners:
        start = "-"
        while start:
            [events] = await reader.ask([("XRANGE", reader.keys.events(owner), start, "+", "COUNT", _EVENTS)])
            for event_id, parts in events or ():
                id = event_number(event_id)
                shared.streams.setdefault(owner, id)
                if found := _END_EVENT.match(parts[1]):
                    shared.ends.setdefault(text(found[2]), []).append((id, text(found[1])))
            start = "(" + text(events[-1][0]) if events and len(events) == _EVENTS else ""


def event_number(event_id: bytes | str) -> _EventId:
    """An event's id as numbers, which are ordered."""
    ms, _, count = text(event_id).partition("-")
    return number(ms), number(count)
