"""Looks at the health of the children at a steady pace, and sees to those that are not well.

How long a child has been silent is counted here, in the monitor's own rounds: each round adds the time since the one
before, but never more than the pace of the child's beats. Time in which the supervisor itself did not run (the machine
was suspended, or we were stopped or starved) is thus not held against its children.

A replacement counts against no limit of restarts. So a child that has been replaced for its memory is not replaced for
it again for a minute, and if its successors are above the limit from their start, for twice as long each time.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn, Protocol, assert_never

from factorial.supervisor.health import PACE, Figures, Kill, Replace, Well, judge, pace
from factorial.supervisor.spec import ChildSpec
from factorial.supervisor.usage import descendants

__all__ = ["Monitor", "Patient"]

log = logging.getLogger(__name__)

_CENSUS_SECONDS = 5.0
"""How often all processes of the machine are looked at, for the number of children: it takes some milliseconds."""
_SECONDS_TO_WRITE_STACKS = 0.5
_FROM_START_SECONDS = 30.0
"""A process that is found above its soft limit at this age or before has been so from its start."""
_SHORTEST_REST, _LONGEST_REST = 60.0, 3600.0
"""Seconds."""


class Patient(Protocol):
    """A process that is ready and that nobody has asked to end, as `process.ChildProcess` is."""

    spec: ChildSpec
    process: str
    figures: Figures
    silence: float

    @property
    def age(self) -> float: ...
    def measure(self, below: Mapping[int, int]) -> None: ...
    def dump(self) -> None: ...
    def kill(self, why: str = "") -> None: ...


@dataclass(slots=True)
class _Rest:
    """How long a child is let be after a replacement for its memory, whether that has succeeded or not."""

    limit: int | None
    """Its soft limit at the time: with another one, all begins anew."""
    since: float = -math.inf
    seconds: float = 0.0
    """For a process that is above the limit from its start. For others the shortest rest will do."""
    is_told: bool = False


class Monitor:
    """Watches the processes that `patients` names at the time. `replace(child id, process)` has one of them replaced,
    and returns when that is done or has failed; only one is replaced at a time."""

    def __init__(
        self,
        patients: Callable[[], Iterable[Patient]],
        replace: Callable[[str, str], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patients = patients
        self._replace = replace
        self._clock = clock
        self._below: Mapping[int, int] = {}
        self._census_at = -_CENSUS_SECONDS
        self._condemned: set[str] = set()
        self._killings: set[asyncio.Task[None]] = set()
        self._replacement: asyncio.Task[None] | None = None
        self._above_from_start: dict[str, bool] = {}
        self._rests: dict[str, _Rest] = {}

    async def run(self) -> NoReturn:
        """Watch until cancelled. What goes wrong in a round is logged, and the next round comes."""
        last, interval = self._clock(), PACE
        try:
            while True:
                await asyncio.sleep(interval)
                elapsed = self._clock() - last
                last += elapsed
                try:
                    interval = self._round(elapsed, last)
                except Exception:  # whatever it is, the children are not left without their doctor
                    log.exception("the health of the children could not be looked at: it is tried again")
        finally:
            for task in (*self._killings, self._replacement):
                if task is not None:
                    task.cancel()

    def _round(self, elapsed: float, now: float) -> float:
        """Look at all of them, and give the seconds until the next round."""
        if now - self._census_at >= _CENSUS_SECONDS:
            self._below, self._census_at = descendants(), now
        patients = list(self._patients())
        here = {patient.process for patient in patients}  # the others have ended
        self._condemned &= here
        self._above_from_start = {name: was for name, was in self._above_from_start.items() if name in here}
        for patient in patients:
            if patient.process in self._condemned:
                continue
            try:
                self._look_at(patient, elapsed)
            except Exception:  # one that cannot be looked at must not hide the others
                log.exception("the health of %s could not be looked at", patient.process)
        return min([PACE, *(pace(patient.spec.health) for patient in patients)])

    def _look_at(self, patient: Patient, elapsed: float) -> None:
        patient.silence += min(elapsed, pace(patient.spec.health))
        patient.measure(self._below)
        match verdict := judge(patient.spec.health, patient.figures, patient.silence, patient.age):
            case Well():
                pass
            case Kill():
                log.error("%s is killed: %s", patient.process, verdict.why)
                self._condemned.add(patient.process)
                self._kill(patient, verdict)
            case Replace():
                self._consider(patient, verdict.why)
            case _:
                assert_never(verdict)

    def _consider(self, patient: Patient, why: str) -> None:
        """Have a child replaced that is above its soft limit, unless it is to be let be."""
        child_id, limit = patient.spec.id, patient.spec.health.soft_memory
        from_start = self._above_from_start.setdefault(patient.process, patient.age <= _FROM_START_SECONDS)
        if self._replacement is not None:
            return
        rest = self._rests.get(child_id)
        if rest is None or rest.limit != limit:
            rest = self._rests[child_id] = _Rest(limit)
        if from_start and rest.seconds and not rest.is_told:
            log.warning("%s is above soft_memory_mb from its start: raise the limit (%s)", child_id, why)
            rest.is_told = True
        seconds = rest.seconds if from_start else min(rest.seconds, _SHORTEST_REST)
        if self._clock() < rest.since + seconds:
            return
        rest.seconds = min(max(2 * seconds, _SHORTEST_REST), _LONGEST_REST) if from_start else _SHORTEST_REST
        log.warning("%s is to be replaced: %s", patient.process, why)
        self._replacement = asyncio.create_task(self._have_replaced(patient, rest, why))

    def _kill(self, patient: Patient, verdict: Kill) -> None:
        if not verdict.stacks:
            patient.kill(verdict.why)
            return
        patient.dump()
        task = asyncio.create_task(self._kill_in_a_moment(patient, verdict.why))
        self._killings.add(task)
        task.add_done_callback(self._killings.discard)

    async def _kill_in_a_moment(self, patient: Patient, why: str) -> None:
        """When the stacks are written. That it might go on meanwhile does not save it: it did no good for long."""
        await asyncio.sleep(_SECONDS_TO_WRITE_STACKS)
        patient.kill(why)

    async def _have_replaced(self, patient: Patient, rest: _Rest, why: str) -> None:
        try:
            await self._replace(patient.spec.id, patient.process)
        except Exception as failed:  # the child stays, and so does supervision
            log.error("%s could not be replaced and goes on: %s", patient.process, failed)
        finally:
            rest.since = self._clock()
            self._replacement = None
