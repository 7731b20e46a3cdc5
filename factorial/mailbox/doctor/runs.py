"""Reads runs, and the places where each of them is.

Payloads are never read. Of conversations, contexts, steering and results, only their existence matters.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from factorial.mailbox.doctor.reader import Questions, Reader, number, text
from factorial.mailbox.doctor.shared import Shared, event_number
from factorial.mailbox.doctor.stored import BELONGINGS, PlacedAt, Run
from factorial.mailbox.keys import KINDS, Keys
from factorial.mailbox.places import ENDED, PARKED, PLACES

__all__ = ["read_runs", "read_with_places"]

_RUN_FIELDS = (
    "status", "agent", "owner", "holder", "nonce", "last_commit", "error", "parent", "batch", "first_event",
    "epoch", "seq", "crashes", "recoveries", "strikes", "cancel_requested", "created_at",
    "deferred_at",
)  # fmt: skip
_NUMBERS = ("epoch", "seq", "crashes", "recoveries", "strikes", "created_at", "deferred_at")
_LONGEST_DEADLINE = 20
"""Bytes. An open await is stored as '?' and a deadline, which are shorter than this. A longer value is a result."""


async def read_runs(reader: Reader, ids: Sequence[str]) -> list[Run]:
    """The runs as they are stored, without their places. A run that does not exist has no status."""
    answers = await reader.ask([("HMGET", reader.keys.run(id), *_RUN_FIELDS) for id in ids])
    return [_run(id, answer or [None] * len(_RUN_FIELDS)) for id, answer in zip(ids, answers, strict=True)]


def _run(id: str, values: Sequence[bytes | None]) -> Run:
    read: dict[str, Any] = {name: text(value) for name, value in zip(_RUN_FIELDS, values, strict=True)}
    read |= {name: number(read[name]) for name in _NUMBERS}
    read["cancel_requested"] = read["cancel_requested"] == "1"
    return Run(id, **read)


async def read_with_places(
    reader: Reader, shared: Shared, ids: Sequence[str], *,
    elsewhere: Mapping[str, set[PlacedAt]] | None = None, thorough: bool = False,
) -> list[Run]:  # fmt: skip
    """The runs and their places.

    `elsewhere`: by run, further places to look for it. `thorough`: read which belongings it has, too, and leave out
    each run that changes meanwhile.
    """
    keys, runs = reader.keys, await read_runs(reader, ids)
    suspects, questions = shared.suspects, Questions(reader)
    for run in runs:
        run.places = shared.standing.get(run.id, ())
        run.noted_by = suspects.get(run.id, ())
        places = {*_own_places(run), *(elsewhere or {}).get(run.id, ())}
        for kind, name in sorted(places - {*run.places}):
            _ask_of_place(questions, keys, run, (kind, name))
        if run.parent:
            _ask_of_parent(questions, keys, run)
        if thorough:
            for kind in BELONGINGS if run.status else ("run", *BELONGINGS):
                _ask_of_belonging(questions, keys, run, kind)
        if run.holder:
            process = shared.processes.get(run.holder)
            run.holder_is_registered = process is not None and process.is_registered
        first = event_number(run.first_event)
        if run.first_event and run.owner in shared.streams and first >= shared.streams[run.owner]:
            run.reported_ends = tuple(how for id, how in shared.ends.get(run.id, ()) if id >= first)
    await questions.send()
    if parked := [run for run in runs if run.status in PARKED]:
        await _read_awaits(reader, parked)
    if thorough:
        again = await read_runs(reader, ids)
        runs = [before for before, after in zip(runs, again, strict=True) if before.state == after.state]
    return runs


def _own_places(run: Run) -> Iterable[PlacedAt]:
    """The places to ask for this run. `Shared.standing` has the others."""
    for place in PLACES if run.status else ():
        if place.is_searchable and (place.is_final or not run.has_ended):
            for status in place.statuses if place.is_final else ("",):
                yield place.kind, place.name(agent=run.agent, owner=run.owner, status=status)


def _ask_of_place(questions: Questions, keys: Keys, run: Run, place: PlacedAt) -> None:
    is_set = KINDS[place[0]].type == "SET"

    def note(answer: Any) -> None:
        if answer if is_set else answer is not None:  # a score may be 0
            run.places += (place,)

    questions.ask(note, "SISMEMBER" if is_set else "ZSCORE", keys.key(*place), run.id)


def _ask_of_parent(questions: Questions, keys: Keys, run: Run) -> None:
    def note_listed(answer: Any) -> None:
        run.is_listed_by_parent = bool(answer)

    def note_status(answer: Any) -> None:
        run.parent_status = text(answer)

    questions.ask(note_listed, "SISMEMBER", keys.key("children", run.parent), run.id)
    questions.ask(note_status, "HGET", keys.run(run.parent), "status")


def _ask_of_belonging(questions: Questions, keys: Keys, run: Run, kind: str) -> None:
    def note(answer: Any) -> None:
        if answer:
            run.belongings += (kind,)

    questions.ask(note, "EXISTS", keys.key(kind, run.id))


async def _read_awaits(reader: Reader, runs: Sequence[Run]) -> None:
    """What each of these runs awaits, without the results."""
    keys = reader.keys
    lists = await reader.ask([("HKEYS", keys.awaits(run.id)) for run in runs])
    lengths, values, others = Questions(reader), Questions(reader), Questions(reader)
    for run, listed in zip(runs, lists, strict=True):
        run.awaits = {}
        for thing in map(text, listed or ()):
            if thing != "plan":
                lengths.ask(_measure(values, keys, run, thing), "HSTRLEN", keys.awaits(run.id), thing)
    await lengths.send()
    await values.send()
    for run in runs:
        for thing, value in (run.awaits or {}).items():
            kind, _, name = thing.partition(":")
            if kind == "child" and value.startswith("?"):
                others.ask(_note_ended_child(run, name), "HGET", keys.run(name), "status")
            elif kind == "tool" and value.startswith("?"):
                others.ask(_note_early_result(run, thing), "HEXISTS", keys.key("journal", run.id), f"delivered:{thing}")
    await others.send()


def _measure(values: Questions, keys: Keys, run: Run, thing: str) -> Callable[[Any], None]:
    def use(length: Any) -> None:
        def note(value: Any) -> None:
            assert isinstance(run.awaits, dict)
            run.awaits[thing] = text(value)

        if (length or 0) > _LONGEST_DEADLINE:
            note("!")
        else:
            values.ask(note, "HGET", keys.awaits(run.id), thing)

    return use


def _note_ended_child(run: Run, child: str) -> Callable[[Any], None]:
    def note(status: Any) -> None:
        if text(status) in ("", *ENDED):
            run.ended_children += (child,)

    return note


def _note_early_result(run: Run, call: str) -> Callable[[Any], None]:
    def note(there: Any) -> None:
        if there:
            run.early_results += (call,)

    return note
