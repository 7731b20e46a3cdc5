"""Records finished steps of a turn and publishes its events so far (`record.lua`). Called by the outbox."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from factorial.mailbox.operations.claim import Token
from factorial.mailbox.script import Scripts, counted, flattened

__all__ = ["Accepted", "Superseded", "record"]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The write was accepted. `cancelled`: the run is to be cancelled."""

    cancelled: bool


class Superseded:
    """Another process holds the run now. Nothing was written."""


async def record(
    scripts: Scripts,
    *,
    task_id: str,
    token: Token,
    message_number: int,
    entries: Mapping[str, bytes],
    events: Sequence[bytes],
) -> Accepted | Superseded:
    """Write journal entries and events, once per `message_number`, however often it is sent."""
    answer = await scripts.run(
        "record", task_id, token.epoch, token.nonce, token.seq, message_number,
        *counted(flattened(entries)), *counted(events),
    )  # fmt: skip
    return Superseded() if answer[0] == b"SUPERSEDED" else Accepted(cancelled=answer[1] == b"1")
