"""Looks at the health of the children at a steady pace, and sees to those that are not well.

How long a child has been silent is counted here, in the monitor's own rounds: each round adds the time since the one
before, but never more than the pace of the child's beats. Time in which the supervisor itself did not run (the machine
was suspended, or we were stopped or starved) is thus not held against its children.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NoReturn, Protocol, assert_never

from factorial.supervisor.health import PACE, Figures, Kill, Replace, Well, judge, pace
from factorial.supervisor.spec import ChildSpec
from factorial.supervisor.usage import descendants

__all__ = ["Monitor", "Patient"]

log = logging.getLogger(__name__)

_CENSUS_SECONDS = 5.0
"""How often all processes of the machine are looked at, for the number of children: it takes some milliseconds."""
_SECONDS_TO_WRITE_STACKS = 0.5
_SECONDS_UNTIL_NEXT_TRY = 60.0
"""How long a child that could not be replaced is let be."""


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


class Monitor:
    """Watches the processes that `patients` names at the time. `replace(child id, why)` has one of them replaced, and
    returns when that is done or has failed; only one is replaced at a time."""

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
        self._let_be: dict[str, float] = {}

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
        self._let_be = {process: until for process, until in self._let_be.items() if until > now}
        patients = list(self._patients())
        self._condemned &= {patient.process for patient in patients}  # the others have ended
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
                following = " (its stacks follow)" if verdict.stacks else ""
                log.error("%s is killed: %s%s", patient.process, verdict.why, following)
                self._condemned.add(patient.process)
                self._kill(patient, verdict)
            case Replace():
                if self._replacement is None and patient.process not in self._let_be:
                    log.warning("%s is replaced: %s", patient.process, verdict.why)
                    self._replacement = asyncio.create_task(self._have_replaced(patient, verdict.why))
            case _:
                assert_never(verdict)

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

    async def _have_replaced(self, patient: Patient, why: str) -> None:
        try:
            await self._replace(patient.spec.id, why)
        except Exception as failed:  # the child stays, and so does supervision
            log.error("%s could not be replaced and goes on: %s", patient.process, failed)
        finally:
            self._let_be[patient.process] = self._clock() + _SECONDS_UNTIL_NEXT_TRY
            self._replacement = None
