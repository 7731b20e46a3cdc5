"""Counts over many runs: of an owner's active runs, of a batch, of throttled runs, and of held runs for owner limits.

The first pass reads the runs and the stored counts at different moments. A count that looks wrong is compared again,
and is a finding only if neither the count nor the runs have changed meanwhile.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from factorial.mailbox.doctor.aggregates import about_batch, about_count, about_running, about_throttled
from factorial.mailbox.doctor.first_pass import count_all_runs
from factorial.mailbox.doctor.invariants import Finding
from factorial.mailbox.doctor.reader import Reader, in_pieces, number, text
from factorial.mailbox.doctor.rereading import unchanged
from factorial.mailbox.doctor.runs import read_runs
from factorial.mailbox.doctor.shared import Shared, read_shared
from factorial.mailbox.doctor.stored import Batch
from factorial.mailbox.doctor.tally import Tally

__all__ = ["confirmed_held_counts", "confirmed_sums"]

_Subject = tuple[str, ...]
"""('owner', owner), ('batch', batch) or ('throttled', agent, owner)"""
_Whose = tuple[str, str]
"""Agent and owner."""


async def confirmed_sums(reader: Reader, shared: Shared, tally: Tally, *, still: bool) -> list[Finding]:
    """Wrong counts of owners and batches, and throttled runs that no other run of their owner will make ready."""
    found = dict(_about_sums(shared, tally))
    if still or not found:
        return list(found.values())

    async def stamps(subjects: Iterable[_Subject]) -> dict[_Subject, Any]:
        return {subject: await _stamp(reader, subject) for subject in subjects}

    quiet = await unchanged(found, stamps, reads=2)
    if not quiet:
        return []
    before = await stamps(quiet)
    shared = await read_shared(reader, shared.names)
    found = dict(_about_sums(shared, await count_all_runs(reader, shared)))
    after = await stamps(quiet)
    return [found[subject] for subject in quiet if subject in found and after[subject] == before[subject]]


def _about_sums(shared: Shared, tally: Tally) -> Iterator[tuple[_Subject, Finding]]:
    for owner in {*tally.active, *shared.active}:
        for finding in about_count(owner, tally.active[owner], shared.active.get(owner)):
            yield ("owner", owner), finding
    for name, stored in shared.batches.items():
        counted = tally.batches.get(name, Batch())
        batch = Batch(stored.total, stored.ended, stored.active, counted.runs, counted.ended_runs)
        for finding in about_batch(name, batch):
            yield ("batch", name), finding
    for (agent, owner), throttled in tally.throttled.items():
        if not tally.held[agent, owner] and not tally.ready[agent, owner]:
            for finding in about_throttled(agent, owner, throttled):
                yield ("throttled", agent, owner), finding


async def _stamp(reader: Reader, subject: _Subject) -> Any:
    """A value that changes whenever the sum of the subject does."""
    keys, kind, name, *rest = reader.keys, *subject
    if kind == "owner":  # each run that starts or ends has an event
        questions: list[tuple[Any, ...]] = [
            ("HGET", keys.owner(name), "active"), ("XREVRANGE", keys.events(name), "+", "-", "COUNT", 1),
        ]  # fmt: skip
    elif kind == "batch":
        questions = [("HMGET", keys.batch(name), "total", "ended", "active")]
    else:
        throttled = keys.key("throttled", f"{name}:{rest[0]}")
        questions = [
            ("ZCARD", throttled), ("ZRANGE", throttled, 0, 0), ("HGET", keys.key("running", name), rest[0])
        ]  # fmt: skip
    return await reader.ask(questions)


async def confirmed_held_counts(reader: Reader, shared: Shared, tally: Tally, *, still: bool) -> list[Finding]:
    """Wrong counts of the runs of an agent and owner that processes hold. Owner limits depend on them."""
    wrong = [whose for whose in {*tally.held, *shared.running} if tally.held[whose] != shared.running.get(whose, 0)]
    if still or not wrong:
        return [
            finding
            for whose in wrong
            for finding in about_running(*whose, tally.held[whose], shared.running.get(whose, 0))
        ]

    async def held_and_counted(some: Collection[_Whose]) -> dict[_Whose, Any]:
        return await _held_and_counted(reader, shared, some)

    quiet = await unchanged(wrong, held_and_counted)
    return [finding for whose, (held, count) in quiet.items() for finding in about_running(*whose, len(held), count)]


async def _held_and_counted(
    reader: Reader, shared: Shared, wanted: Collection[_Whose]
) -> dict[_Whose, tuple[frozenset[tuple[str, int]], int]]:
    """By agent and owner: the held runs with their epochs, and the stored count.

    Leaves out those whose count changed meanwhile. One read of the processes serves all of `wanted`.
    """
    keys = reader.keys
    [registered] = await reader.ask([("ZRANGE", keys.key("processes"), 0, -1)])
    counts = [("HGET", keys.key("running", agent), owner) for agent, owner in wanted]
    processes = sorted({*map(text, registered or ()), *shared.names["held"]})
    sets = [("SMEMBERS", keys.held(name)) for name in processes]
    # The server usually executes all of one write without a pause. If it did not, the reads differ.
    answers = await reader.ask([*counts, *sets, *counts])
    before, members, after = answers[: len(counts)], answers[len(counts) : -len(counts)], answers[-len(counts) :]
    held: dict[_Whose, set[tuple[str, int]]] = defaultdict(set)
    for ids in in_pieces(text(id) for some in members for id in some or ()):
        for run in await read_runs(reader, ids):
            held[run.agent, run.owner].add((run.id, run.epoch))
    return {
        whose: (frozenset(held[whose]), number(count))
        for whose, count, again in zip(wanted, before, after, strict=True)
        if count == again
    }
