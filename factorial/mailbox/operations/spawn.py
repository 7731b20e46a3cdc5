"""Stores and queues the children of a run (`spawn.lua`). Called by the durable host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from factorial.mailbox.operations.claim import Token
from factorial.mailbox.operations.record import Accepted, Superseded
from factorial.mailbox.script import Argument, Scripts, counted, flattened

__all__ = ["ChildBatch", "NewRun", "spawn"]

_AT_ONCE = 100
"""Children that one script call stores, so that no call takes long."""


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to be stored."""

    task_id: str
    agent: str
    conversation: Sequence[bytes]
    fields: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class ChildBatch:
    """The batch of the children."""

    batch_id: str
    seed: str = ""
    """What the ids of its runs follow from."""
    max_turns: int = 0
    """Turns of a run that count for progress; 0: progress counts runs."""


_NO_BATCH = ChildBatch("")


async def spawn(
    scripts: Scripts, *, parent: str, token: Token, batch: ChildBatch | None, children: Sequence[NewRun]
) -> Accepted | Superseded:
    """Store `children` of the run `parent`, which is held under `token`. Children that exist are left as they are.

    If the parent is to be cancelled, or another process holds it, the rest of them is not stored.
    """
    whole = batch or _NO_BATCH
    for first in range(0, len(children), _AT_ONCE):
        some = children[first : first + _AT_ONCE]
        described = [part for child in some for part in _described(child)]
        about = (whole.batch_id, whole.seed, whole.max_turns, len(children))
        answer = await scripts.run("spawn", parent, token.epoch, token.nonce, *about, len(some), *described)
        if answer[0] == b"SUPERSEDED":
            return Superseded()
        if answer[0] == b"CANCELLED":
            return Accepted(cancelled=True)
    return Accepted(cancelled=False)


def _described(child: NewRun) -> list[Argument]:
    return [child.task_id, child.agent, *counted(child.conversation), *counted(flattened(child.fields))]
