"""End a turn and say what happens next (`commit.lua`). Called by the execution, with what the turn returned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil

from factorial.mailbox.operations.claim import Token, paired
from factorial.mailbox.operations.enqueue import flattened
from factorial.mailbox.operations.record import Superseded
from factorial.mailbox.script import Scripts, counted

__all__ = ["Action", "Commit", "Committed", "EntryMissing", "commit"]


class Action(StrEnum):
    """What happens to the run after a turn."""

    CONTINUE = "continue"
    COMPLETE = "complete"
    CONCLUDE = "conclude"
    """`complete`, also over unread mail: no further turn is allowed."""
    PARK = "park"
    RESUME = "resume"
    """An answer only: all that was to be waited for is there."""
    BACKOFF = "backoff"
    RELEASE = "release"
    FAIL = "fail"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Commit:
    """All that a turn leaves behind."""

    action: Action
    turn_done: bool
    """Whether the turn ran to its end; if not, its journal stays for the next try."""
    messages: Sequence[bytes] = ()
    """New messages, each b"m" + JSON or b"j" + the name of the journal entry that holds it."""
    rewrite: bool = False
    """`messages` is the whole conversation: it was edited, not appended to."""
    fields: Mapping[str, bytes] = field(default_factory=dict)
    entries: Mapping[str, bytes] = field(default_factory=dict)
    events: Sequence[bytes] = ()
    doubtful: int = 0
    """The number of a step message that was not answered; 0: there is none. It brought the first `doubtful_events` of
    the events, so these may be published already."""
    doubtful_events: int = 0
    delay: float = 0.0
    error: str = ""
    final_fields: Mapping[str, bytes] = field(default_factory=dict)
    """Context fields and events that count only if the action is carried out."""
    final_events: Sequence[bytes] = ()
    plan: bytes = b""
    """For `PARK`: what to make of the results, and what to wait for: `tool:<call id>` or `child:<task id>`, each with
    the seconds after which it is waited for no more (0: never)."""
    awaited: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Committed:
    """The action that was carried out, which a steer or a cancel may have changed, and the mail that has entered the
    conversation with it."""

    action: Action
    mail: Sequence[bytes]
    awaited: Mapping[str, bytes] = field(default_factory=dict)
    """With `RESUME`: what was to be waited for, and the results."""


class EntryMissing:
    """A journal entry that the commit names is not there: the server has lost it. Nothing was changed."""


async def commit(
    scripts: Scripts, *, task_id: str, process: str, token: Token, work: Commit
) -> Committed | Superseded | EntryMissing:
    """Write `work` in one step, once however often it is sent."""
    answer = await scripts.run(
        "commit", task_id, process, token.epoch, token.nonce, token.seq, int(work.turn_done), int(work.rewrite),
        *counted(work.messages), *counted(flattened(work.fields)),
        *counted(flattened(work.entries)), *counted(work.events), work.doubtful, work.doubtful_events,
        work.action, round(work.delay * 1000), work.error,
        *counted(flattened(work.final_fields)), *counted(work.final_events),
        work.plan, *counted(part for key, patience in work.awaited.items() for part in (key, ceil(patience * 1000))),
    )  # fmt: skip
    if answer[0] == b"SUPERSEDED":
        return Superseded()
    if answer[0] == b"MISSING":
        return EntryMissing()
    return Committed(action=Action(answer[1].decode()), mail=answer[2], awaited=paired(answer[3]))
