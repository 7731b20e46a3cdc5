"""Runs, processes and batches as they were found in the server."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["BELONGINGS", "ENDED", "PARKED", "Batch", "Place", "Process", "Run"]

ENDED = ("completed", "failed", "cancelled")
PARKED = ("pending_tool_results", "pending_child_tasks")
BELONGINGS = {
    "conversation": "conversation", "fields": "context", "journal": "journal", "mail": "mail",
    "seen": "ids of accepted mail", "awaits": "list of awaited things", "children": "list of children",
}  # fmt: skip
"""The keys that a run may have beside its hash, by their kind. Of an ended one only the first two are left."""

Place = tuple[str, str]
"""Where a run stands, as a kind of key and its name: ('ready', agent), ('held', process), ('ended', 'agent:status')"""


@dataclass(slots=True)
class Run:
    """A run as it is stored, and where it was found."""

    id: str
    status: str = ""
    """Empty: there is no such run (any more), and something of it was found all the same."""
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
    parent: str = ""
    batch: str = ""
    first_event: str = ""
    """The id of its first event."""
    places: tuple[Place, ...] = ()
    """All places where it was found; one where it is twice is there twice."""
    belongings: tuple[str, ...] = ()
    holder_is_known: bool = True
    """Whether its holder has registered: else nobody would take it back."""
    noted_by: tuple[str, ...] = ()
    """The processes that say that it is the suspect they hold."""
    parent_status: str = ""
    """Empty: it has no parent, or that is gone."""
    parent_lists_it: bool = False
    awaited: Mapping[str, str] | None = None
    """What a parked run waits for: '?' and the deadline of what has not come, '!' of what has; 'open': how much has
    not. None: it has no such list."""
    kept_early: tuple[str, ...] = ()
    """Of these, the results that are there and were not given to it."""
    ended_children: tuple[str, ...] = ()
    """Of these, the children that have ended."""
    ends: tuple[str, ...] | None = None
    """The statuses with which its events say that it ended. None: they were not read, or some are trimmed."""

    @property
    def has_ended(self) -> bool:
        """Whether its status is final."""
        return self.status in ENDED

    @property
    def is_suspect(self) -> bool:
        """Whether two or more processes crashed while they held the run, since it last finished a step."""
        return self.crashes >= 2

    @property
    def state(self) -> tuple[object, ...]:
        """What changes with every change of the run: two looks that see the same one have missed none between them."""
        return (self.status, self.epoch, self.seq, self.crashes, self.holder)


@dataclass(slots=True)
class Process:
    """A process that has registered, or holds something."""

    name: str
    agent: str = ""
    suspect: str = ""
    """The run that is noted as its suspect."""
    is_alive: bool = False
    """Whether it has a lease."""
    is_registered: bool = False
    """Else, what it holds would not be taken back."""
    held: int = 0


@dataclass(slots=True)
class Batch:
    """What is said of a batch, and what its runs say."""

    total: int = 0
    ended: int = 0
    active: int = 0
    runs: int = 0
    ended_runs: Counter[str] = field(default_factory=Counter)
