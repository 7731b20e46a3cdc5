"""Claims ready runs (`claim.lua`). Called by the worker actor."""

import itertools
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from factorial.mailbox.script import Scripts, paired

__all__ = ["Claim", "ClaimRequest", "ClaimedRun", "NoLease", "Token", "claim", "new_nonce"]


@dataclass(frozen=True, slots=True)
class Token:
    """Proof that a process still holds a run: a write under another token is refused.

    The nonce is needed because a failover may roll the server back, and an epoch alone could then repeat.
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
    awaits: Mapping[str, bytes]
    """What the run was parked for, with the results; empty if it was not parked."""
    started_at: datetime
    """The time of its first claim."""
    deferred_for: float = 0.0
    """Seconds since it was deferred first, without a finished step in between; 0: it is not deferred."""
    age: float = 0.0
    """Seconds since it was enqueued, at the moment of the claim."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The claimed runs, and the seconds until the next run is due (None: none is)."""

    runs: Sequence[ClaimedRun]
    next_due: float | None


class NoLease:
    """The process has no lease: register it, then claim again."""


_numbers = itertools.count(1)


def new_nonce() -> str:
    """A value that no other claim has. It also tells which of a process's claims are older."""
    return f"{next(_numbers)}-{secrets.token_hex(8)}"


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """What a worker asks for. Sent again, with the same nonce, it gets the same runs."""

    process: str
    worker: str
    agent: str
    count: int
    """The most runs to claim."""
    recovery_limit: int
    """How many deaths of its processes end a run as `crash_loop`, if nothing else can be blamed."""
    owner_limit: int = 0
    """The most held runs of one owner; further ones are throttled. 0: no limit."""
    nonce: str = field(default_factory=new_nonce)


async def claim(scripts: Scripts, request: ClaimRequest) -> Claim | NoLease:
    """Claim ready runs of the request's agent."""
    answer = await scripts.run(
        "claim", request.process, request.worker, request.agent, request.count, request.nonce,
        request.recovery_limit, request.owner_limit,
    )  # fmt: skip
    if answer[0] == b"NOLEASE":
        return NoLease()
    next_due = None if answer[1] < 0 else answer[1] / 1000
    return Claim(runs=[_claimed_run(found, request) for found in answer[2]], next_due=next_due)


def _claimed_run(found: list[Any], request: ClaimRequest) -> ClaimedRun:
    task_id, owner, epoch, seq, retries, pickups, cancel, conversation, fields, journal, awaits, *times = found
    started, deferred, age = times
    return ClaimedRun(
        task_id=task_id.decode(),
        owner_id=owner.decode(),
        agent=request.agent,
        token=Token(epoch, request.nonce, seq),
        retries=retries,
        pickups=pickups,
        cancelled=cancel == b"1",
        conversation=conversation,
        fields=paired(fields),
        journal=paired(journal),
        awaits=paired(awaits),
        started_at=datetime.fromtimestamp(started / 1000, UTC),
        deferred_for=deferred / 1000,
        age=age / 1000,
    )
