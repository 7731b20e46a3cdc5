"""The first pass: reads every key and every run once. Each run that looks wrong becomes a candidate.

Most candidates are fine: they changed while they were read. `rereading.py` sorts them out.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from factorial.mailbox.doctor.invariants import Invariant
from factorial.mailbox.doctor.reader import Reader, in_pieces, text
from factorial.mailbox.doctor.rules import about_run
from factorial.mailbox.doctor.runs import read_with_places
from factorial.mailbox.doctor.shared import Shared
from factorial.mailbox.doctor.stored import BELONGINGS, PlacedAt
from factorial.mailbox.doctor.tally import Tally
from factorial.mailbox.keys import KINDS
from factorial.mailbox.places import ENDED, PARKED, PLACES, Place

__all__ = ["Candidates", "count_all_runs", "read_everything"]

_MOST_CANDIDATES = 10_000
"""If more runs look wrong, a note says how many were omitted."""


@dataclass(slots=True)
class Candidates:
    """What looked wrong in the first pass, and has to be read again."""

    runs: dict[str, set[PlacedAt]] = field(default_factory=lambda: defaultdict(set))
    """The runs, each with the places in which it was seen and does not belong."""
    owners: set[str] = field(default_factory=set)
    """Owners whose stored events do not match their runs."""
    omitted: int = 0
    """The number of further runs, which are not read again."""

    def add(self, id: str, place: PlacedAt | None = None) -> None:
        """Add the run `id`, and a place in which it does not belong."""
        if id not in self.runs and len(self.runs) >= _MOST_CANDIDATES:
            self.omitted += 1
        elif place is None:
            self.runs[id]
        else:
            self.runs[id].add(place)


async def read_everything(reader: Reader, shared: Shared, candidates: Candidates) -> Tally:
    """Read all runs, all that belongs to runs, and the members of all places. Fill `candidates`."""
    tally, seen = Tally(), set[str]()
    async for keys in reader.names():
        for ids in in_pieces(_new_runs(keys, seen)):
            await _read_runs(reader, shared, ids, candidates, tally)
        await _read_belongings(reader, [(kind, name) for kind, name in keys if kind in BELONGINGS], candidates)
    for place in PLACES:
        if place.is_searchable and not place.is_final:
            for name in sorted(shared.names[place.kind]):
                async for ids in reader.members(place.kind, name):
                    await _read_members(reader, place, name, ids, candidates)
    for id in {*shared.standing, *shared.suspects} - seen:
        candidates.add(id)
    return tally


async def count_all_runs(reader: Reader, shared: Shared) -> Tally:
    """Read all runs again, for their sums alone."""
    tally, seen = Tally(), set[str]()
    async for keys in reader.names():
        for ids in in_pieces(_new_runs(keys, seen)):
            for run in await read_with_places(reader, shared, ids):
                if run.status:
                    tally.add(run)
    return tally


def _new_runs(keys: Iterable[PlacedAt], seen: set[str]) -> set[str]:
    """The runs among these keys that are not in `seen`, which gets them. A scan may return a key twice."""
    new = {name for kind, name in keys if kind == "run"} - seen
    seen |= new
    return new


async def _read_runs(reader: Reader, shared: Shared, ids: list[str], candidates: Candidates, tally: Tally) -> None:
    runs = await read_with_places(reader, shared, ids)
    shared.note_keys_of(runs)
    for run in runs:
        if run.status:
            tally.add(run)
        else:
            candidates.add(run.id)
        if found := list(about_run(run)):
            candidates.add(run.id)
            if any(finding.invariant is Invariant.END_EVENT for finding in found):
                candidates.owners.add(run.owner)


async def _read_belongings(reader: Reader, belongings: list[tuple[str, str]], candidates: Candidates) -> None:
    """Find what belongs to no run, or to an ended run that must not have it any more."""
    statuses = await reader.ask_of_all("run", {name for _, name in belongings}, "HGET", "status")
    for kind, name in belongings:
        status = text(statuses[name])
        if not status or (status in ENDED and not KINDS[kind].kept):
            candidates.add(name)
        if kind == "children":
            async for ids in reader.members(kind, name):
                children = await reader.ask_of_all("run", ids, "HMGET", "parent", "status")
                for child, values in children.items():
                    parent, status = map(text, values or ("", ""))
                    if parent != name or status in ENDED:
                        candidates.add(child, (kind, name))


async def _read_members(reader: Reader, place: Place, name: str, ids: list[str], candidates: Candidates) -> None:
    """Find the runs that do not belong in this place."""
    allowed = (*place.statuses, *PARKED) if place.kind == "due" else place.statuses  # a parked run may have a deadline
    runs = await reader.ask_of_all("run", ids, "HMGET", "status", "agent", "owner")
    for id, values in runs.items():
        status, agent, owner = map(text, values or ("", "", ""))
        if status not in allowed or name != place.name(agent=agent, owner=owner):
            candidates.add(id, (place.kind, name))
