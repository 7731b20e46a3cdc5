"""Reads a whole namespace, key by key, while everything moves: what the rules of `invariants.py` are about.

Commands that read, and no script: the server is never held up, and a user of the server who may only read will do. What
is long is read in pieces. Payloads are never read: of conversations, contexts, mail and results only whether they are
there; of events the first bytes are looked at.

What is kept in memory: the ids of all runs, where the ready and the held ones stand, and which stored events end a run.
Called by `checkup.py`.
"""

import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from redis.exceptions import ResponseError

from factorial.mailbox.connect import Commands
from factorial.mailbox.invariants import BELONGINGS, ENDED, PARKED, Batch, Place, Process, Run
from factorial.mailbox.keys import Keys

__all__ = ["Reader", "Shared", "Tally", "look", "read_ends", "read_shared"]

_PIECE = 500
"""How many keys, members or events one command asks for."""
_EVENTS = 100
"""The same, for events, each of which may be long."""
_LONG_PIECE = 10_000
"""The same, for lists of ids."""
_LONGEST_DEADLINE = 20
"""A thing that is awaited and has not come is stored in fewer bytes than this; what is longer has come."""
_SHARED = (
    "ready", "suspects", "throttled", "running", "passed", "due", "parked", "wake", "held", "claims", "events", "owner",
    "batch",
)  # fmt: skip
_RUN_FIELDS = (
    "status", "agent", "owner", "holder", "nonce", "closed", "error", "parent", "batch", "born",
    "epoch", "seq", "crashes", "recoveries", "strikes", "cancel", "created",
)  # fmt: skip
_NUMBERS = ("epoch", "seq", "crashes", "recoveries", "strikes")
_END_EVENT = re.compile(rb'{"event_type":"run_(completed|failed|cancelled)","task_id":"([^"]*)"')

EventId = tuple[int, int]


class Reader:
    """Asks the server many things at once. What is of another type than it should be reads as nothing, and is noted."""

    def __init__(self, commands: Commands, keys: Keys) -> None:
        self._commands = commands
        self._keys = keys
        # A connection issues commands without a coroutine for each.
        self._send: Callable[..., Awaitable[Any]] = getattr(commands, "send", commands.execute)
        self.unreadable: set[str] = set()
        """Keys whose type is not theirs."""

    async def ask(self, questions: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The answers to these commands, whose second word is a key."""
        answers: list[Any] = []
        failure: Exception | None = None
        for answering, question in zip([self._send(*each) for each in questions], questions, strict=True):
            try:
                answers.append(await answering)
            except ResponseError as refused:
                if not str(refused).startswith("WRONGTYPE"):
                    failure = refused
                self.unreadable.add(str(question[1]))
                answers.append(None)
            except Exception as error:  # all are awaited, so that none is left behind with an exception of its own
                failure = error
        if failure is not None:
            raise failure
        return answers

    async def ask_of_all(self, kind: str, names: Iterable[str], command: str, *rest: Any) -> dict[str, Any]:
        """The answers to one command about the keys of a kind, by their names."""
        wanted, found = iter(names), dict[str, Any]()
        while piece := list(islice(wanted, _PIECE)):
            answers = await self.ask([(command, self._keys.key(kind, name), *rest) for name in piece])
            found |= dict(zip(piece, answers, strict=True))
        return found

    async def names(self) -> AsyncIterator[list[tuple[str, str]]]:
        """The kind and the name of each key of the namespace, in pieces. One may come more than once."""
        cursor = b"0"
        while True:
            cursor, keys = await self._commands.execute(
                "SCAN", cursor, "MATCH", f"{self._keys.prefix}*", "COUNT", 2 * _PIECE
            )
            parsed = (self._keys.parse(text(key)) for key in keys)
            yield [(kind, name) for kind, name in parsed if kind]
            if int(cursor) == 0:
                return

    async def members(self, kind: str, name: str) -> AsyncIterator[list[str]]:
        """The ids in a list, a set or a sorted set, in pieces. One may come more than once, while it changes."""
        key = self._keys.key(kind, name)
        if kind in ("children", "parked", "held"):
            cursor = b"0"
            while True:
                [answer] = await self.ask([("SSCAN", key, cursor, "COUNT", _PIECE)])
                cursor, ids = answer or (b"0", [])
                yield [text(id) for id in ids]
                if int(cursor) == 0:
                    return
        # From the end: what is taken from the front, and put there, moves nothing that is still to be read.
        command, end = ("ZRANGE" if kind in ("due", "throttled") else "LRANGE"), -1
        while True:
            [ids] = await self.ask([(command, key, end - _LONG_PIECE + 1, end)])
            yield [text(id) for id in ids or ()]
            if not ids or len(ids) < _LONG_PIECE:
                return
            end -= _LONG_PIECE

    async def runs(self, ids: Sequence[str]) -> list[tuple[Run, int]]:
        """The runs as they are stored, without their places, and when each was made, in ms since 1970."""
        answers = await self.ask([("HMGET", self._keys.run(id), *_RUN_FIELDS) for id in ids])
        return [_run(id, answer or [None] * len(_RUN_FIELDS)) for id, answer in zip(ids, answers, strict=True)]


def _run(id: str, values: Sequence[bytes | None]) -> tuple[Run, int]:
    read: dict[str, Any] = {name: text(value) for name, value in zip(_RUN_FIELDS, values, strict=True)}
    created = number(read.pop("created"))
    read |= {name: number(read[name]) for name in _NUMBERS}
    read["cancel"] = read["cancel"] == "1"
    return Run(id, **read), created


def text(value: bytes | str | None) -> str:
    """What is stored, as text; what is no UTF-8 is shown as such."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


def number(value: bytes | str | None) -> int:
    """What is stored, as a number; 0 for what is none."""
    try:
        return int(value or 0)
    except ValueError:
        return 0


class _Questions:
    """Many questions that go to the server together, each with what is to be done with its answer."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._asked: list[tuple[Callable[[Any], None], tuple[Any, ...]]] = []

    def ask(self, use: Callable[[Any], None], *question: Any) -> None:
        self._asked.append((use, question))

    async def answered(self) -> None:
        """Ask them, some at a time."""
        for first in range(0, len(self._asked), 4 * _PIECE):
            piece = self._asked[first : first + 4 * _PIECE]
            for (use, _), answer in zip(piece, await self._reader.ask([each for _, each in piece]), strict=True):
                use(answer)


# What belongs to no single run.


@dataclass(slots=True)
class Shared:
    """Queues, processes, counts. Read before the runs."""

    names: dict[str, set[str]]
    """By kind: the names of the keys that are no run's own."""
    processes: dict[str, Process]
    passed: dict[str, tuple[str, ...]]
    """By agent: the processes that have passed its wake token on."""
    wake: dict[str, bool]
    """By agent with a queue: whether there is a wake token."""
    active: dict[str, int]
    """By owner: the number of its active runs, as it is stored."""
    running: dict[tuple[str, str], int]
    """By agent and owner: the number of runs that are held, as it is stored."""
    batches: dict[str, Batch]
    """What they say of themselves."""
    doomed: int
    standing: dict[str, tuple[Place, ...]] = field(default_factory=dict)
    """By run: where it stands in the lists of ready runs and suspects, and in what processes hold."""
    ends: dict[str, list[tuple[EventId, str]]] = field(default_factory=dict)
    """By run: the events that tell of its end: their ids, and the status."""
    streams: dict[str, EventId] = field(default_factory=dict)
    """By owner whose events were read: the id of the oldest one."""

    @property
    def suspects(self) -> dict[str, tuple[str, ...]]:
        """By run: the processes that say that it is their suspect."""
        noted: dict[str, tuple[str, ...]] = defaultdict(tuple)
        for process in self.processes.values():
            if process.suspect:
                noted[process.suspect] += (process.name,)
        return noted


async def read_shared(reader: Reader, keys: Keys, names: dict[str, set[str]] | None = None) -> Shared:
    """All that is no run's own. `names`: where it is, if that is known from before."""
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
        active={owner: number(count) for owner, count in counts.items()},
        running={
            (agent, text(owner)): number(count)
            for agent, counted in running.items()
            for owner, count in batched(counted or ())
        },
        batches={name: _batch(counted) for name, counted in batches.items()},
        doomed=doomed or 0,
    )
    for kind in ("ready", "suspects", "held"):
        for name in sorted(names[kind]):
            await _note_standing(reader, shared, kind, name)
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
        may_repeat = kind == "held" or pieces > 1  # what moves while it is read in pieces may be in two of them
        for id in ids:
            before = standing.get(id, ())
            if not (may_repeat and place[0] in before):
                standing[id] = before + place if before else place
                if kind == "held":
                    shared.processes[name].held += 1


async def read_ends(reader: Reader, keys: Keys, shared: Shared, owners: Iterable[str]) -> None:
    """Note which of the owners' stored events tell of the end of a run."""
    for owner in owners:
        start = "-"
        while start:
            [events] = await reader.ask([("XRANGE", keys.events(owner), start, "+", "COUNT", _EVENTS)])
            for event_id, parts in events or ():
                id = event_number(event_id)
                shared.streams.setdefault(owner, id)
                if found := _END_EVENT.match(parts[1]):
                    shared.ends.setdefault(text(found[2]), []).append((id, text(found[1])))
            start = "(" + text(events[-1][0]) if events and len(events) == _EVENTS else ""


# The runs.


async def look(
    reader: Reader, keys: Keys, shared: Shared, ids: Sequence[str], *,
    elsewhere: Mapping[str, set[Place]] | None = None, thorough: bool = False,
) -> list[tuple[Run, int]]:  # fmt: skip
    """The runs and their places, and when each was made.

    `elsewhere`: further places in which a run was seen, and is looked for. `thorough`: look for its belongings, too,
    and leave out each run that changes meanwhile.
    """
    found = await reader.runs(ids)
    suspects, questions = shared.suspects, _Questions(reader)
    for run, _ in found:
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
            run.holder_is_known = process is not None and process.is_registered
        if run.born and run.owner in shared.streams and event_number(run.born) >= shared.streams[run.owner]:
            run.ends = tuple(how for id, how in shared.ends.get(run.id, ()) if id >= event_number(run.born))
    await questions.answered()
    if parked := [run for run, _ in found if run.status in PARKED]:
        await _read_awaited(reader, keys, parked)
    if thorough:
        again = await reader.runs(ids)
        found = [before for before, after in zip(found, again, strict=True) if before[0].state == after[0].state]
    return found


def _own_places(run: Run) -> Iterable[Place]:
    """The places that have to be looked at for this run: the others are known already."""
    if run.status:
        yield from (("ended", f"{run.agent}:{status}") for status in ENDED)
    if run.status and not run.has_ended:
        yield from (("due", run.agent), ("parked", run.agent), ("throttled", f"{run.agent}:{run.owner}"))


def _ask_of_place(questions: _Questions, keys: Keys, run: Run, place: Place) -> None:
    def note(answer: Any) -> None:
        if answer not in (None, 0):
            run.places += (place,)

    command = "SISMEMBER" if place[0] in ("parked", "children") else "ZSCORE"
    questions.ask(
        note if command == "SISMEMBER" else lambda score: note(score is not None), command, keys.key(*place), run.id
    )


def _ask_of_parent(questions: _Questions, keys: Keys, run: Run) -> None:
    def note_listed(answer: Any) -> None:
        run.parent_lists_it = bool(answer)

    def note_status(answer: Any) -> None:
        run.parent_status = text(answer)

    questions.ask(note_listed, "SISMEMBER", keys.key("children", run.parent), run.id)
    questions.ask(note_status, "HGET", keys.run(run.parent), "status")


def _ask_of_belonging(questions: _Questions, keys: Keys, run: Run, kind: str) -> None:
    def note(answer: Any) -> None:
        if answer:
            run.belongings += (kind,)

    questions.ask(note, "EXISTS", keys.key(kind, run.id))


async def _read_awaited(reader: Reader, keys: Keys, runs: Sequence[Run]) -> None:
    """What each of these waits for, without the results."""
    lists = await reader.ask([("HKEYS", keys.awaited(run.id)) for run in runs])
    lengths, values, others = _Questions(reader), _Questions(reader), _Questions(reader)
    for run, listed in zip(runs, lists, strict=True):
        run.awaited = {}
        for thing in map(text, listed or ()):
            if thing != "plan":
                lengths.ask(_measure(values, keys, run, thing), "HSTRLEN", keys.awaited(run.id), thing)
    await lengths.answered()
    await values.answered()
    for run in runs:
        for thing, value in (run.awaited or {}).items():
            kind, _, name = thing.partition(":")
            if kind == "child" and value.startswith("?"):
                others.ask(_note_ended_child(run, name), "HGET", keys.run(name), "status")
            elif kind == "tool" and value.startswith("?"):
                others.ask(_note_kept(run, thing), "HEXISTS", keys.key("journal", run.id), f"given:{thing}")
    await others.answered()


def _measure(values: _Questions, keys: Keys, run: Run, thing: str) -> Callable[[Any], None]:
    def use(length: Any) -> None:
        def note(value: Any) -> None:
            assert isinstance(run.awaited, dict)
            run.awaited[thing] = text(value)

        if (length or 0) > _LONGEST_DEADLINE:
            note("!")
        else:
            values.ask(note, "HGET", keys.awaited(run.id), thing)

    return use


def _note_ended_child(run: Run, child: str) -> Callable[[Any], None]:
    def note(status: Any) -> None:
        if text(status) in ("", *ENDED):
            run.ended_children += (child,)

    return note


def _note_kept(run: Run, call: str) -> Callable[[Any], None]:
    def note(there: Any) -> None:
        if there:
            run.kept_early += (call,)

    return note


# Sums over the runs.


@dataclass(slots=True)
class Tally:
    """What many runs amount to."""

    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By agent and status."""
    active: Counter[str] = field(default_factory=Counter)
    """By owner: the runs that have not ended."""
    held: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By agent and owner."""
    throttled: Counter[tuple[str, str]] = field(default_factory=Counter)
    ready: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Suspects that wait are among them."""
    waiting: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By agent: 'ready' and 'suspects', and how many of each wait to be taken up."""
    oldest: dict[str, int] = field(default_factory=dict)
    """By agent: when the oldest of these was enqueued, in ms since 1970."""
    batches: dict[str, Batch] = field(default_factory=lambda: defaultdict(Batch))
    without_deadline: int = 0
    """Parked runs that wait, without a deadline, for something that has not come."""

    def add(self, run: Run, created: int) -> None:
        """One more run."""
        whose = (run.agent, run.owner)
        self.statuses[run.agent, run.status] += 1
        if run.batch:
            batch = self.batches[run.batch]
            batch.runs += 1
            batch.ended_runs[run.status] += run.has_ended
        if run.has_ended:
            return
        self.active[run.owner] += 1
        if run.status == "processing":
            self.held[whose] += 1
        elif run.status == "queued":
            kinds = {kind for kind, _ in run.places}
            self.throttled[whose] += "throttled" in kinds
            for kind in ("ready", "suspects"):
                if kind in kinds:
                    self.ready[whose] += 1
                    self.waiting[run.agent][kind] += 1
                    self.oldest[run.agent] = min(created, self.oldest.get(run.agent, created))
        elif run.status in PARKED and "?0" in (run.awaited or {}).values():
            self.without_deadline += 1


def batched(flat: Iterable[Any]) -> Iterable[tuple[Any, Any]]:
    """Name and value, name and value, ..."""
    items = iter(flat)
    return zip(items, items, strict=True)


def event_number(event_id: bytes | str) -> EventId:
    """An event's id, as it is ordered."""
    ms, _, count = text(event_id).partition("-")
    return number(ms), number(count)
