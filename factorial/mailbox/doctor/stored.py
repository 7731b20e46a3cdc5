"""Runs, processes and batches as they were read from the server."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from factorial.mailbox.keys import KINDS
from factorial.mailbox.places import ENDED

__all__ = ["BELONGINGS", "Batch", "PlacedAt", "Process", "Run"]

BELONGINGS = tuple(kind for kind, about in KINDS.items() if about.is_of_run and kind != "run")
"""The kinds of the keys that a run may have next to its hash."""

PlacedAt = tuple[str, str]
"""Where a run is, as a kind of key and its name: ('ready', agent), ('held', process), ('ended', 'agent:status')."""


@dataclass(slots=True)
class Run:
    """A run as it is stored, and the places where it was found."""

    id: str
    status: str = ""
    """Empty: the run does not exist, but something of it was found."""
    agent: str = ""
    owner: str = ""
    holder: str = ""
    nonce: str = ""
    epoch: int = 0
    seq: int = 0
    crashes: int = 0
    recoveries: int = 0
    strikes: int = 0
    cancel_requested: bool = False
    last_commit: str = ""
    """The latest commit: 'epoch:nonce:seq:action:mail'. Empty: there was none."""
    error: str = ""
    deferred_at: int = 0
    """Since when it is deferred, in ms since 1970; 0: it is not."""
    parent: str = ""
    batch: str = ""
    first_event: str = ""
    """The id of its first event."""
    created_at: int = 0
    """In ms since 1970."""
    places: tuple[PlacedAt, ...] = ()
    """All places where it was found. A place that has it twice is listed twice."""
    belongings: tuple[str, ...] = ()
    """The kinds of keys that it has next to its hash."""
    holder_is_registered: bool = True
    """Nobody reclaims what an unregistered process holds."""
    noted_by: tuple[str, ...] = ()
    """The processes that have a note that it is their suspect."""
    parent_status: str = ""
    """Empty: it has no parent, or the parent does not exist."""
    is_listed_by_parent: bool = False
    awaits: Mapping[str, str] | None = None
    """What a parked run awaits: '?' and a deadline for what has not arrived, '!' for what has. 'open' is the stored
    number of things that have not. None: the run is not parked."""
    early_results: tuple[str, ...] = ()
    """The open awaits whose results are in the journal: they arrived before the run parked."""
    ended_children: tuple[str, ...] = ()
    """The open awaits that are children and have ended."""
    reported_ends: tuple[str, ...] | None = None
    """The statuses with which its events report its end. None: they were not read, or some have been trimmed."""

    @property
    def has_ended(self) -> bool:
        """Whether its status is final."""
        return self.status in ENDED

    @property
    def is_suspect(self) -> bool:
        """Whether two or more processes crashed while they held the run, since its last recorded step."""
        return self.crashes >= 2

    @property
    def state(self) -> tuple[object, ...]:
        """A value that differs after each change of the run, and never recurs."""
        return (self.status, self.epoch, self.seq, self.crashes, self.holder)


@dataclass(slots=True)
class Process:
    """A process that is registered, or holds runs."""

    name: str
    agent: str = ""
    suspect: str = ""
    """The run that it has a note of as its suspect."""
    is_alive: bool = False
    """Whether it has a lease."""
    is_registered: bool = False
    """Nobody reclaims what an unregistered process holds."""
    held: int = 0
    """The number of runs that it holds."""


@dataclass(slots=True)
class Batch:
    """What a batch counts, and what its runs are."""

    total: int = 0
    ended: int = 0
    active: int = 0
    runs: int = 0
    """The number of its runs that are stored."""
    ended_runs: Counter[str] = field(default_factory=Counter)
    """The number of these that have ended, by status."""
