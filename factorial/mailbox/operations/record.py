"""Keep what finished within a turn and publish what happened (`step.lua`). Called by the execution's ledger."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from factorial.mailbox.operations.claim import Token
from factorial.mailbox.operations.enqueue import flattened
from factorial.mailbox.script import Scripts, counted

__all__ = ["Noted", "Superseded", "record"]


@dataclass(frozen=True, slots=True)
class Noted:
    """The step is kept. `cancelled`: somebody asked for the run to end."""

    cancelled: bool


class Superseded:
    """Somebody else holds the run now: nothing was written, and nothing may be."""


async def record(
    scripts: Scripts,
    *,
    task_id: str,
    token: Token,
    told: int,
    entries: Mapping[str, bytes],
    events: Sequence[bytes],
) -> Noted | Superseded:
    """Write journal entries and events, once per `told` however often it is sent."""
    answer = await scripts.run(
        "record", task_id, token.epoch, token.nonce, token.seq, told, *counted(flattened(entries)), *counted(events)
    )
    return Superseded() if answer[0] == b"SUPERSEDED" else Noted(cancelled=answer[1] == b"1")
