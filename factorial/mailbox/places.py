"""The places of a run in the store. A run is in exactly one of them at any moment.

Whatever lists the places derives from this table: the counts in `views/`, the columns of `status`, the rules of the
doctor. A further place needs a row here, a kind in `keys.KINDS`, and the Lua that moves runs into it and out of it
(`lib/places.lua`).
"""

from dataclasses import dataclass

from factorial.mailbox.keys import KINDS
from factorial.task import TaskStatus

__all__ = ["BY_KIND", "ENDED", "PARKED", "PLACES", "Place", "lua_places"]


@dataclass(frozen=True, slots=True)
class Place:
    """A place: keys of one kind, with the ids of runs."""

    kind: str
    """The kind of its keys. `KINDS` has their type, and of what there is a key each."""
    statuses: tuple[TaskStatus, ...]
    """The statuses that a run may have here."""
    called: str
    """What one of its keys is called in messages, with its name in the braces."""
    column: str = ""
    """The name of the count of its runs, in `status` and for each agent. Empty: its runs are not counted."""
    suspects: bool | None = None
    """Whether suspects are here, and only suspects. None: it makes no difference."""

    @property
    def type(self) -> str:
        """The type of its keys: LIST, SET or ZSET."""
        return KINDS[self.kind].type

    @property
    def is_queue(self) -> bool:
        """Whether its runs are free to be claimed."""
        return self.type == "LIST"

    @property
    def is_final(self) -> bool:
        """Whether runs stay here."""
        return all(status.is_final for status in self.statuses)

    @property
    def state(self) -> str:
        """What metrics call the state of its runs."""
        return "parked" if self.statuses == PARKED else self.statuses[0].value

    @property
    def is_searchable(self) -> bool:
        """Whether one command finds a run here, if its agent, owner and status are known."""
        return not self.is_queue and "<process>" not in KINDS[self.kind].name

    def admits(self, status: str, *, suspect: bool) -> bool:
        """Whether a run with this status may be here."""
        return status in self.statuses and self.suspects in (None, suspect)

    def name(self, *, agent: str = "", owner: str = "", process: str = "", status: str = "") -> str:
        """The name of its key for such a run."""
        parts = {"<agent>": agent, "<owner>": owner, "<process>": process, "<status>": status}
        return ":".join(parts[part] for part in KINDS[self.kind].name.split(":"))


PARKED = (TaskStatus.PENDING_TOOL_RESULTS, TaskStatus.PENDING_CHILD_TASKS)
ENDED = (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)

PLACES = (
    Place("ready", (TaskStatus.QUEUED,), "the ready queue of agent {}", "ready", suspects=False),
    Place("throttled", (TaskStatus.QUEUED,), "the throttled runs of {}", "throttled", suspects=False),
    Place("suspects", (TaskStatus.QUEUED,), "the queue of suspects of agent {}", "suspects", suspects=True),
    Place("due", (TaskStatus.BACKOFF,), "the due runs of agent {}", "backoff"),
    Place("parked", PARKED, "the parked runs of agent {}", "parked"),
    Place("held", (TaskStatus.PROCESSING,), "the runs held by process {}", "held"),
    Place("ended", ENDED, "the ended runs of {}"),
)
"""In the order of the columns of `status`.

A parked run with a deadline is also in `due`, and a cancelled run stays in `ready` until a claim skips it."""
BY_KIND = {place.kind: place for place in PLACES}

_LENGTH = {"LIST": "LLEN", "SET": "SCARD", "ZSET": "ZCARD"}


def lua_places(source: str) -> str:
    """For a script that reads `PLACES_OF_AGENT`: the places with one key per agent, with the command that counts."""
    if "PLACES_OF_AGENT" not in source:
        return ""
    rows = (f"{{'{place.kind}', '{_LENGTH[place.type]}'}}" for place in PLACES if KINDS[place.kind].name == "<agent>")
    return f"local PLACES_OF_AGENT = {{{', '.join(rows)}}}\n"
