"""Reads again what looked wrong. What is wrong in each read, while nothing has changed between them, is a finding."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from typing import Any, TypeVar

from factorial.mailbox.doctor.aggregates import about_process
from factorial.mailbox.doctor.first_pass import Candidates
from factorial.mailbox.doctor.invariants import Finding
from factorial.mailbox.doctor.reader import Reader, in_pieces
from factorial.mailbox.doctor.rules import about_run
from factorial.mailbox.doctor.runs import read_with_places
from factorial.mailbox.doctor.shared import Shared, read_ends, read_shared
from factorial.mailbox.doctor.stored import PlacedAt

__all__ = ["confirmed_processes", "confirmed_runs", "unchanged"]

_READS = 3
"""How often a candidate is read."""
_PAUSE = 0.3
"""Seconds between two reads."""

_K = TypeVar("_K", bound=Hashable)


async def confirmed_runs(reader: Reader, shared: Shared, candidates: Candidates, *, still: bool) -> list[Finding]:
    """What is wrong with the candidates in each read. `still`: read them once, because nothing changes."""
    runs: Mapping[str, set[PlacedAt]] = candidates.runs
    confirmed: set[tuple[Finding, Hashable]] | None = None
    for _ in range(1 if still else _READS):
        if not runs:
            return []
        if not still:
            await asyncio.sleep(_PAUSE)
            shared = await read_shared(reader, shared.names)
            await read_ends(reader, shared, candidates.owners)
        found: dict[tuple[Finding, Hashable], str] = {}
        for ids in in_pieces(runs):
            again = await read_with_places(reader, shared, ids, elsewhere=runs, thorough=True)
            found |= {(finding, run.state): run.id for run in again for finding in about_run(run)}
            shared.note_keys_of(again)
        confirmed = set(found) if confirmed is None else confirmed & set(found)
        left = {found[key] for key in confirmed}
        runs = {id: places for id, places in runs.items() if id in left}
    return [finding for finding, _ in confirmed or ()]


async def confirmed_processes(reader: Reader, shared: Shared, *, still: bool) -> list[Finding]:
    """What is wrong in each read with the processes that passed a wake token on."""
    confirmed: set[Finding] | None = None
    for read in range(1 if still else _READS):
        if read > 0:
            await asyncio.sleep(_PAUSE)
            shared = await read_shared(reader, shared.names)
        found = {
            finding
            for agent, names in shared.passed.items()
            for name in names
            for finding in about_process(name, agent, shared.processes.get(name))
        }
        confirmed = found if confirmed is None else confirmed & found
        if not confirmed:
            break
    return list(confirmed or ())


async def unchanged(
    keys: Collection[_K], values_of: Callable[[Collection[_K]], Awaitable[dict[_K, Any]]], *,
    reads: int = _READS, pause: float | None = None,
) -> dict[_K, Any]:  # fmt: skip
    """The keys whose value is the same in each read, and these values. `pause`: seconds between two reads.

    A key without a value, or with a changed one, is not read again.
    """
    values = await values_of(keys) if keys else {}
    for _ in range(reads - 1):
        if values:
            await asyncio.sleep(_PAUSE if pause is None else pause)
            again = await values_of(values.keys())
            values = {key: before for key, before in values.items() if key in again and again[key] == before}
    return values
