"""Store a new run and queue it (`enqueue.lua`). Called by the orchestrator; a worker's claim comes next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from factorial.mailbox.script import Argument, Scripts, counted

__all__ = ["Enqueued", "enqueue", "flattened"]


@dataclass(frozen=True, slots=True)
class Enqueued:
    """Where the run's events begin; empty if the run was there already."""

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


def flattened(pairs: Mapping[str, bytes]) -> list[Argument]:
    """Name, value, name, value, ... as `set_all` reads it."""
    return [part for pair in pairs.items() for part in pair]
