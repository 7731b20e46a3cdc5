"""Take ready runs up (`claim.lua`). Called by the worker actor, which hands each to an execution."""

import itertools
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from factorial.mailbox.script import Scripts

__all__ = ["Claim", "ClaimedRun", "NoLease", "Token", "claim", "new_nonce", "paired"]


@dataclass(frozen=True, slots=True)
class Token:
    """What proves that the run is ours: every write under it is refused once somebody else has it.

    The nonce is there because a failover may roll the server back, and an epoch alone could then repeat.
    """

    epoch: int
    nonce: str
    seq: int

    def next(self) -> "Token":
        """The token after a commit."""
        return Token(self.epoch, self.nonce, self.seq + 1)


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run as its new holder finds it."""

    task_id: str
    owner_id: str
    agent: str
    token: Token
    retries: int
    pickups: int
    cancelled: bool
    conversation: Sequence[bytes]
    fields: Mapping[str, bytes]
    journal: Mapping[str, bytes]
    awaited: Mapping[str, bytes]
    """What the run was parked for, with the results; empty if it was not."""
    started_at: datetime
    """When it was taken up for the first time."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The runs that were taken up, and the seconds until the next one is due (None: none is)."""

    runs: Sequence[ClaimedRun]
    next_due: float | None


class NoLease:
    """The process has no lease (any more): register it, then claim again."""


async def claim(
    scripts: Scripts,
    *,
    process: str,
    worker: str,
    agent: str,
    count: int,
    recovery_limit: int,
    owner_limit: int = 0,
    nonce: str = "",
) -> Claim | NoLease:
    """Take up to `count` ready runs of `agent`. The same `nonce` (see `new_nonce`) again gives the same runs.

    `owner_limit`: runs of an owner that has so many held already wait until one of them is let go; 0: no limit.
    """
    nonce = nonce or new_nonce()
    answer = await scripts.run("claim", process, worker, agent, count, nonce, recovery_limit, owner_limit)
    if answer[0] == b"NOLEASE":
        return NoLease()
    next_due = None if answer[1] < 0 else answer[1] / 1000
    return Claim(runs=[_read_run(found, agent, nonce) for found in answer[2]], next_due=next_due)


_numbers = itertools.count(1)


def new_nonce() -> str:
    """What tells one claim from all others, and says which of a process's claims are older."""
    return f"{next(_numbers)}-{secrets.token_hex(8)}"


def _read_run(found: list[Any], agent: str, nonce: str) -> ClaimedRun:
    task_id, owner, epoch, seq, retries, pickups, cancel, conversation, fields, journal, awaited, started = found
    return ClaimedRun(
        task_id=task_id.decode(),
        owner_id=owner.decode(),
        agent=agent,
        token=Token(epoch, nonce, seq),
        retries=retries,
        pickups=pickups,
        cancelled=cancel == b"1",
        conversation=conversation,
        fields=paired(fields),
        journal=paired(journal),
        awaited=paired(awaited),
        started_at=datetime.fromtimestamp(started / 1000, UTC),
    )


def paired(flat: Iterable[bytes]) -> dict[str, bytes]:
    """The hash that the server sent as name, value, name, value, ...

    A name that is no UTF-8, which is none of ours, comes with marks in it: it must not end the process that reads it.
    """
    items = iter(flat)
    return {name.decode(errors="replace"): value for name, value in zip(items, items, strict=True)}
