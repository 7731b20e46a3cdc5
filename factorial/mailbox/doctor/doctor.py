"""Checks that a namespace keeps the protocol's promise, while everything moves. Changes nothing.

    screen     every run and every key once: whatever looks wrong in passing is a suspicion
    confirm    suspicions are looked at again, and again: what is wrong each time, in the same way, with the same state
               of the run (`Run.state`), is a finding
    recount    sums over all runs of an owner or a batch that has not changed from before to after

Why no finding is a false alarm: no two stretches of a run's life have the same state. Two looks that see the same one
have between them seen no change; the second look reads all places of the run after the first has seen its state, and
before it sees that state again. What never stands still is not judged, and needs not be: it is being worked on.

What is kept in memory: the ids of all runs, where the ready and the held ones stand, and which stored events end a run.

Called by `python -m factorial doctor`, and after every test that touches Redis.
"""

import asyncio
import shlex
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from factorial.mailbox.doctor.invariants import (
    HERE,
    Finding,
    Invariant,
    about_batch,
    about_count,
    about_process,
    about_run,
    about_running,
    about_throttled,
    about_wake,
)
from factorial.mailbox.doctor.notes import notes_on, served_agents
from factorial.mailbox.doctor.reader import Reader, number, text
from factorial.mailbox.doctor.runs import look, read_runs
from factorial.mailbox.doctor.shared import Shared, read_ends, read_shared
from factorial.mailbox.doctor.stored import BELONGINGS, ENDED, PARKED, Batch, Place, Run
from factorial.mailbox.doctor.tally import Tally
from factorial.mailbox.keys import Keys
from factorial.mailbox.transport.commands import Commands

__all__ = ["Checkup", "check"]

_PAUSE = 0.3
"""Seconds between two looks at a suspicion."""
_LOOKS = 3
_TOKEN_LOOKS, _TOKEN_PAUSE = 13, 1.0
"""A wake token may be missing for 12 s. Whoever dies with it in hand is buried, workers with room look around every
5 s, and maintenance puts it back every 10 s."""
_HEAD = 9
"""Of a queue, this many and one more runs are looked at to see whether it moves."""
_PLACES = ("ready", "suspects", "throttled", "held", "due", "parked", "ended")
"""Kinds of keys in which runs stand."""
_PIECE = 500
_MOST_SUSPICIONS = 10_000
"""Runs that are looked at again. Where more look wrong, the rest is counted in a note."""

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class Checkup:
    """What was found."""

    findings: list[Finding]
    notes: list[str]
    """What is no violation, and worth knowing at night."""
    statuses: dict[str, dict[str, int]]
    """By agent: how many runs have which status."""
    owners: int
    """Those with runs that have not ended."""
    alive: int
    """Processes with a lease."""
    missing: int
    """Processes without one."""
    doubts: int
    """Runs that looked wrong in passing, and were looked at again."""


async def check(
    commands: Commands, keys: Keys, *, events: bool = True, still: bool = False, tokens: bool = True
) -> Checkup:
    """Check a namespace.

    `events`: read the stored events, too, which takes longest. `still`: nothing moves, so one look is enough. `tokens`:
    ask for a wake token wherever something is ready: it is missing after a process died with it in hand, until another
    one puts it back.
    """
    return await _Check(commands, keys, events, still, tokens).run()


@dataclass(slots=True)
class _Suspicions:
    """What looked wrong in passing."""

    runs: dict[str, set[Place]] = field(default_factory=lambda: defaultdict(set))
    """The runs, and places that are not theirs in which they were seen."""
    ends: set[str] = field(default_factory=set)
    """Owners whose events seem to tell something else than their runs."""
    more: int = 0
    """Runs beyond those that are looked at again."""

    def add(self, id: str, place: Place | None = None) -> None:
        """One more."""
        if id not in self.runs and len(self.runs) >= _MOST_SUSPICIONS:
            self.more += 1
        elif place is None:
            self.runs[id]
        else:
            self.runs[id].add(place)


class _Check:
    def __init__(self, commands: Commands, keys: Keys, events: bool, still: bool, tokens: bool) -> None:
        self._commands, self._keys = commands, keys
        self._reader = Reader(commands, keys)
        self._events, self._still, self._tokens = events, still, tokens
        self._suspicions = _Suspicions()
        self._looks = 1 if still else _LOOKS
        self._pause = 0.0 if still else _PAUSE

    async def run(self) -> Checkup:
        shared = await read_shared(self._reader, self._keys)
        if self._events:
            await read_ends(self._reader, self._keys, shared, shared.names["events"])
        tally = await self._screen(shared)
        findings = [
            *await self._confirmed(shared),
            *await self._sums(shared, tally),
            *await self._running(shared, tally),
            *await self._passed(shared),
            *await self._wake(shared, tally),
            *self._unreadable(),
        ]
        statuses: dict[str, dict[str, int]] = defaultdict(dict)
        for (agent, status), count in sorted(tally.statuses.items()):
            statuses[agent][status] = count
        return Checkup(
            findings=[
                replace(one, mend=one.mend.replace(HERE, self._keys.prefix))
                for one in sorted(findings, key=lambda one: (one.invariant, one.subject))
            ],
            notes=[*notes_on(shared, tally, await self._now()), *self._left_out()],
            statuses=dict(statuses),
            owners=len(tally.active),
            alive=sum(process.is_alive for process in shared.processes.values()),
            missing=sum(process.is_registered and not process.is_alive for process in shared.processes.values()),
            doubts=len(self._suspicions.runs) + self._suspicions.more,
        )

    async def _now(self) -> int:
        seconds, microseconds = await self._commands.execute("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000

    # Screen.

    async def _screen(self, shared: Shared) -> Tally:
        """Look at everything once, and note what looks wrong."""
        tally, seen = Tally(), set[str]()
        async for piece in self._reader.names():
            fresh = {name for kind, name in piece if kind == "run"} - seen  # one may come twice
            seen |= fresh
            for ids in _pieces(fresh):
                looked = await look(self._reader, self._keys, shared, ids)
                _learn(shared, looked)
                for run, created in looked:
                    if run.status:
                        tally.add(run, created)
                    else:
                        self._suspicions.add(run.id)
                    if found := list(about_run(run)):
                        self._suspicions.add(run.id)
                        if any(one.invariant is Invariant.TOLD for one in found):
                            self._suspicions.ends.add(run.owner)
            await self._screen_belongings([(kind, name) for kind, name in piece if kind in BELONGINGS])
        for kind in ("due", "parked", "throttled"):
            for name in sorted(shared.names[kind]):
                async for ids in self._reader.members(kind, name):
                    await self._screen_members((kind, name), ids)
        for id in {*shared.standing, *shared.suspects} - seen:
            self._suspicions.add(id)
        return tally

    async def _screen_belongings(self, belongings: list[tuple[str, str]]) -> None:
        """Note what belongs to no run, or to one that has ended and should have it no more."""
        statuses = await self._reader.ask_of_all("run", {name for _, name in belongings}, "HGET", "status")
        for kind, name in belongings:
            status = text(statuses[name])
            if not status or (status in ENDED and kind not in ("conversation", "fields")):
                self._suspicions.add(name)
            if kind == "children":
                async for ids in self._reader.members(kind, name):
                    children = await self._reader.ask_of_all("run", ids, "HMGET", "parent", "status")
                    for child, about in children.items():
                        parent, status = map(text, about or ("", ""))
                        if parent != name or status in ENDED:
                            self._suspicions.add(child, (kind, name))

    async def _screen_members(self, place: Place, ids: list[str]) -> None:
        """Note the runs that should not be in this place."""
        wanted = {"due": ("backoff", *PARKED), "parked": PARKED, "throttled": ("queued",)}[place[0]]
        runs = await self._reader.ask_of_all("run", ids, "HMGET", "status", "agent", "owner")
        for id, about in runs.items():
            status, agent, owner = map(text, about or ("", "", ""))
            name = f"{agent}:{owner}" if place[0] == "throttled" else agent
            if status not in wanted or name != place[1]:
                self._suspicions.add(id, place)

    # Confirm.

    async def _confirmed(self, shared: Shared) -> list[Finding]:
        """Of the suspicions about single runs, what is so in each look."""
        suspects: Mapping[str, set[Place]] = self._suspicions.runs
        confirmed: set[tuple[Finding, Hashable]] | None = None
        for _ in range(self._looks):
            if not suspects:
                return []
            await asyncio.sleep(self._pause)
            if not self._still:
                shared = await self._shared_again(shared)
                await read_ends(self._reader, self._keys, shared, self._suspicions.ends)
            found: dict[tuple[Finding, Hashable], str] = {}
            for ids in _pieces(suspects):
                looked = await look(self._reader, self._keys, shared, ids, elsewhere=suspects, thorough=True)
                found |= {(finding, run.state): run.id for run, _ in looked for finding in about_run(run)}
                _learn(shared, looked)
            confirmed = set(found) if confirmed is None else confirmed & set(found)
            left = {found[key] for key in confirmed}
            suspects = {id: places for id, places in suspects.items() if id in left}
        return [finding for finding, _ in confirmed or ()]

    async def _shared_again(self, shared: Shared) -> Shared:
        return shared if self._still else await read_shared(self._reader, self._keys, shared.names)

    async def _unchanged(
        self, keys: Collection[K], stamped: Callable[[Collection[K]], Awaitable[dict[K, Any]]], *, looks: int,
        pause: float,
    ) -> dict[K, Any]:  # fmt: skip
        """Those whose stamp is the same in each look, and the stamp. None is asked for again once it has changed, or
        has no stamp."""
        stamps = await stamped(keys) if keys else {}
        for _ in range(looks - 1):
            if stamps:
                await asyncio.sleep(pause)
                again = await stamped(stamps.keys())
                stamps = {key: before for key, before in stamps.items() if key in again and again[key] == before}
        return stamps

    # Sums.

    async def _sums(self, shared: Shared, tally: Tally) -> list[Finding]:
        """Counts of an owner's and a batch's runs, and throttled runs that nobody lets in."""
        found = dict(_about_sums(shared, tally))
        if self._still or not found:
            return list(found.values())
        quiet = await self._unchanged(found, self._stamps_of_sums, looks=2, pause=_PAUSE)
        if not quiet:
            return []
        before = await self._stamps_of_sums(quiet)
        shared = await self._shared_again(shared)
        found = dict(_about_sums(shared, await self._recounted(shared)))
        after = await self._stamps_of_sums(quiet)
        return [found[subject] for subject in quiet if subject in found and after[subject] == before[subject]]

    async def _recounted(self, shared: Shared) -> Tally:
        tally, seen = Tally(), set[str]()
        async for piece in self._reader.names():
            fresh = {name for kind, name in piece if kind == "run"} - seen
            seen |= fresh
            for ids in _pieces(fresh):
                for run, created in await look(self._reader, self._keys, shared, ids):
                    if run.status:
                        tally.add(run, created)
        return tally

    async def _stamps_of_sums(self, subjects: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], Any]:
        return {subject: await self._stamp_of_sum(subject) for subject in subjects}

    async def _stamp_of_sum(self, subject: tuple[str, ...]) -> Any:
        """What changes whenever such a sum does."""
        keys, kind, name, *rest = self._keys, *subject
        if kind == "owner":  # each run that begins or ends has an event
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
        return await self._reader.ask(questions)

    async def _running(self, shared: Shared, tally: Tally) -> list[Finding]:
        """Counts of the runs that are held, for owner limits."""
        suspicious = [
            whose for whose in {*tally.held, *shared.running} if tally.held[whose] != shared.running.get(whose, 0)
        ]
        if self._still or not suspicious:
            return [
                finding for whose in suspicious
                for finding in about_running(*whose, tally.held[whose], shared.running.get(whose, 0))
            ]  # fmt: skip

        async def held_and_counted(some: Collection[tuple[str, str]]) -> dict[tuple[str, str], Any]:
            return await self._held_and_counted(some, shared)

        quiet = await self._unchanged(suspicious, held_and_counted, looks=_LOOKS, pause=_PAUSE)
        return [
            finding for whose, (held, count) in quiet.items() for finding in about_running(*whose, len(held), count)
        ]

    async def _held_and_counted(
        self, suspicious: Collection[tuple[str, str]], shared: Shared
    ) -> dict[tuple[str, str], tuple[frozenset[tuple[str, int]], int]]:
        """By agent and owner: the runs that are held, with their epochs, and the count; without those whose count
        changed meanwhile. The processes are asked once, however many owners are suspicious."""
        keys = self._keys
        registered = await self._commands.execute("ZRANGE", keys.key("processes"), 0, -1)
        counts = [("HGET", keys.key("running", agent), owner) for agent, owner in suspicious]
        sets = [("SMEMBERS", keys.held(name)) for name in sorted({*map(text, registered), *shared.names["held"]})]
        # The server answers what comes in one write in one go, mostly; if it did not, two looks will not be alike.
        answers = await self._reader.ask([*counts, *sets, *counts])
        before, members, after = (
            answers[: len(counts)], answers[len(counts) : -len(counts)], answers[-len(counts) :]
        )  # fmt: skip
        held: dict[tuple[str, str], set[tuple[str, int]]] = defaultdict(set)
        for ids in _pieces(text(id) for some in members for id in some or ()):
            for run, _ in await read_runs(self._reader, keys, ids):
                held[run.agent, run.owner].add((run.id, run.epoch))
        return {
            whose: (frozenset(held[whose]), number(count))
            for whose, count, again in zip(suspicious, before, after, strict=True)
            if count == again
        }

    async def _passed(self, shared: Shared) -> list[Finding]:
        """Processes that have passed a wake token on."""
        confirmed: set[Finding] | None = None
        for _ in range(self._looks):
            found = {
                finding
                for agent, names in shared.passed.items() for name in names
                for finding in about_process(name, agent, shared.processes.get(name))
            }  # fmt: skip
            confirmed = found if confirmed is None else confirmed & found
            if not confirmed:
                break
            await asyncio.sleep(self._pause)
            shared = await self._shared_again(shared)
        return list(confirmed or ())

    async def _wake(self, shared: Shared, tally: Tally) -> list[Finding]:
        """Something ready, and no wake token."""
        if not self._tokens:
            return []
        found = {}
        for agent, waiting in tally.waiting.items():
            for finding in about_wake(
                agent, waiting["ready"], waiting["suspects"],
                has_token=shared.wake.get(agent, False), passed=len(shared.passed.get(agent, ())),
            ):  # fmt: skip
                found[agent] = finding
        if self._still:
            return list(found.values())

        async def missing(agents: Iterable[str]) -> dict[str, Any]:
            return {agent: queues for agent in agents if (queues := await queues_without_token(agent))}

        async def queues_without_token(agent: str) -> Any:
            keys = self._keys
            *queues, token, passed = await self._reader.ask([
                ("LRANGE", keys.ready(agent), 0, _HEAD), ("LLEN", keys.ready(agent)),
                ("LRANGE", keys.key("suspects", agent), 0, _HEAD), ("LLEN", keys.key("suspects", agent)),
                ("EXISTS", keys.wake(agent)), ("EXISTS", keys.key("passed", agent)),
            ])  # fmt: skip
            ready, suspects = ([text(id) for id in queue or ()] for queue in queues[::2])
            statuses = await self._reader.ask_of_all("run", ready or suspects, "HGET", "status")
            if token or (passed and not ready) or b"queued" not in statuses.values():
                return None
            return queues

        # Without a process nobody hears a token; the first one looks around as it comes.
        served = [agent for agent in found if agent in served_agents(shared)]
        quiet = await self._unchanged(served, missing, looks=_TOKEN_LOOKS, pause=_TOKEN_PAUSE)
        return [found[agent] for agent in quiet]

    def _unreadable(self) -> list[Finding]:
        findings = []
        for key in sorted(self._reader.unreadable):
            kind, name = self._keys.parse(key)
            what = f"{kind} of {name}" if name else kind
            findings.append(
                Finding(
                    Invariant.PLACE if kind in _PLACES else Invariant.REMAINS,
                    f"key {key}",
                    f"is {what} by its name, and of another type: something else has overwritten it",
                    f"find out what writes there; then DEL {shlex.quote(key)}, and ask again, for what stood in it",
                )
            )
        return findings

    def _left_out(self) -> list[str]:
        if not self._suspicions.more:
            return []
        return [f"{self._suspicions.more} more runs look wrong, and were not looked at again: mend the others first"]


def _pieces(ids: Iterable[str]) -> Iterator[list[str]]:
    listed = list(ids)
    for first in range(0, len(listed), _PIECE):
        yield listed[first : first + _PIECE]


def _learn(shared: Shared, looked: Iterable[tuple[Run, int]]) -> None:
    """Where these runs may be when they are looked at again: what was empty, or not yet there, was no key."""
    for run, _ in looked:
        if run.status:
            shared.names["owner"].add(run.owner)
            for kind in ("ready", "suspects", "running", "passed"):
                shared.names[kind].add(run.agent)


def _about_sums(shared: Shared, tally: Tally) -> Iterator[tuple[tuple[str, ...], Finding]]:
    for owner in {*tally.active, *shared.active}:
        for finding in about_count(owner, tally.active[owner], shared.active.get(owner)):
            yield ("owner", owner), finding
    for name, said in shared.batches.items():
        stored = tally.batches.get(name, Batch())
        batch = Batch(said.total, said.ended, said.active, stored.runs, stored.ended_runs)
        for finding in about_batch(name, batch):
            yield ("batch", name), finding
    for (agent, owner), waiting in tally.throttled.items():
        if not tally.held[agent, owner] and not tally.ready[agent, owner]:
            for finding in about_throttled(agent, owner, waiting):
                yield ("throttled", agent, owner), finding
