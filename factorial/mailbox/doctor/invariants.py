"""The invariants: what is true of every namespace at every moment, whatever has happened. And what a finding is.

The first seven are the protocol's promise. The others are about what supports it.
"""

from dataclasses import dataclass
from enum import IntEnum

from factorial.mailbox.keys import Keys

__all__ = ["HERE", "KEYS", "REPORT", "Finding", "Invariant"]

KEYS = Keys("NAMESPACE")
HERE = KEYS.prefix
"""The prefix of each key in a finding's `fix`. The report has the prefix of its namespace in this place."""
REPORT = "Report this as a bug of Factorial, with the logs of the processes that worked on it."
"""What to do about a violation that nothing but a bug explains."""


class Invariant(IntEnum):
    """The invariants, by number."""

    PLACE = 1
    COMMIT = 2
    COUNT = 3
    WAKE = 4
    REQUEST = 5
    RESULT = 6
    CHILD = 7
    END_EVENT = 8
    SUSPECT = 9
    REMAINS = 10

    @property
    def promise(self) -> str:
        """What must be true."""
        return _PROMISES[self]


_PROMISES = {
    Invariant.PLACE: "every run is in exactly one place: ready, throttled, suspects, held, due, parked or ended",
    Invariant.COMMIT: "each turn of a run is committed once, and only by the process that holds the run",
    Invariant.COUNT: "the stored counts of each owner's runs equal the numbers of these runs",
    Invariant.WAKE: "an agent with ready runs has a wake token, and throttled runs become ready when others end",
    Invariant.REQUEST: "an accepted cancel ends the run as cancelled, and accepted steering is read or answered",
    Invariant.RESULT: "a result is accepted once, an early one is kept, and no run awaits one that has arrived",
    Invariant.CHILD: "a parent is notified of each child's end exactly once",
    Invariant.END_EVENT: "the end of each run is reported by exactly one event",
    Invariant.SUSPECT: "a process holds at most one suspect, and has a note of it",
    Invariant.REMAINS: "an ended run keeps only what can be read of it, and a removed run keeps nothing",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A violation of an invariant."""

    invariant: Invariant
    subject: str
    """What it is about: 'run 4f1c', 'owner user1', 'process weather.1-3fa9c2', 'agent weather', 'batch 77' or
    'key ...'."""
    text: str
    """What is wrong, in sentences."""
    fix: str
    """What can be done about it, in sentences. Commands for `redis-cli` or `valkey-cli` are in backticks."""

    def __str__(self) -> str:
        return f"invariant {self.invariant}: {self.text} {self.fix}"
