"""Ends a turn and carries out its outcome (`commit.lua`). Called by the durable host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil

from factorial.mailbox.operations.claim import Token
from factorial.mailbox.operations.record import Superseded
from factorial.mailbox.script import Scripts, counted, flattened, paired

__all__ = ["Action", "Commit", "Committed", "EntryMissing", "commit"]


class Action(StrEnum):
    """What happens to the run after a turn."""

    CONTINUE = "continue"
    COMPLETE = "complete"
    CONCLUDE = "conclude"
    """`complete`, even over unread mail: no further turn is allowed."""
    PARK = "park"
    RESUME = "resume"
    """Only an answer to `park`: everything that the run awaits has arrived."""
    BACKOFF = "backoff"
    DEFER = "defer"
    """`backoff` without a retry: what the run needs is away."""
    RELEASE = "release"
    FAIL = "fail"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Commit:
    """All that a turn leaves behind."""

    action: Action
    turn_done: bool
    """Whether the turn ran to its end. If not, its journal is kept for the next attempt."""
    messages: Sequence[bytes] = ()
    """New messages, each b"m" + JSON, or b"j" + the name of the journal entry that holds it."""
    rewrite: bool = False
    """`messages` is the whole conversation: it was edited, not only appended to."""
    fields: Mapping[str, bytes] = field(default_factory=dict)
    entries: Mapping[str, bytes] = field(default_factory=dict)
    events: Sequence[bytes] = ()
    unanswered: int = 0
    """The number of a record message that was not answered; 0: there is none. It carried the first `unanswered_events`
    of the events, so these may have been published."""
    unanswered_events: int = 0
    delay: float = 0.0
    error: str = ""
    final_fields: Mapping[str, bytes] = field(default_factory=dict)
    """Context fields that count only if the action is carried out."""
    final_events: Sequence[bytes] = ()
    """Events that are published only if the action is carried out."""
    plan: bytes = b""
    """For `PARK`: what to make of the results."""
    awaits: Mapping[str, float] = field(default_factory=dict)
    """For `PARK`: `tool:<call id>` or `child:<task id>`, each with the seconds until its deadline (0: none)."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The action that was carried out, which steering or a cancel may have changed."""

    action: Action
    mail: Sequence[bytes]
    """The steering messages that entered the conversation."""
    awaits: Mapping[str, bytes] = field(default_factory=dict)
    """With `RESUME`: what the run awaited, and the results."""


class EntryMissing:
    """The server has lost a journal entry that the commit names. Nothing was changed."""


async def commit(
    scripts: Scripts, *, task_id: str, process: str, token: Token, work: Commit
) -> Committed | Superseded | EntryMissing:
    """Write `work` atomically, and once, however often it is sent."""
    answer = await scripts.run(
        "commit", task_id, process, token.epoch, token.nonce, token.seq, int(work.turn_done), int(work.rewrite),
        *counted(work.messages), *counted(flattened(work.fields)),
        *counted(flattened(work.entries)), *counted(work.events), work.unanswered, work.unanswered_events,
        work.action, round(work.delay * 1000), work.error,
        *counted(flattened(work.final_fields)), *counted(work.final_events),
        work.plan, *counted(part for key, patience in work.awaits.items() for part in (key, ceil(patience * 1000))),
    )  # fmt: skip
    if answer[0] == b"SUPERSEDED":
        return Superseded()
    if answer[0] == b"MISSING":
        return EntryMissing()
    return Committed(action=Action(answer[1].decode()), mail=answer[2], awaits=paired(answer[3]))
