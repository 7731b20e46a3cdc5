"""Stores a new run and queues it (`enqueue.lua`). Called by the orchestrator; a worker's claim comes next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from factorial.mailbox.script import Scripts, counted, flattened

__all__ = ["Enqueued", "enqueue"]


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The id of the run's first event; empty if the run existed already."""

    event_id: str


async def enqueue(
    scripts: Scripts,
    *,
    task_id: str,
    agent: str,
    owner_id: str,
    conversation: Sequence[bytes],
    fields: Mapping[str, bytes],
) -> Enqueued:
    """Store and queue a run. The same id again changes nothing."""
    answer = await scripts.run("enqueue", task_id, agent, owner_id, *counted(conversation), *counted(flattened(fields)))
    return Enqueued(event_id=answer[1].decode() if answer[0] == b"OK" else "")
