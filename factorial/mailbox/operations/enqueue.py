"""Stores a new run and queues it (`enqueue.lua`). Called by the orchestrator; a worker's claim comes next."""

from collections.abc import Mapping, Sequence

from factorial.mailbox.script import Scripts, counted, flattened

__all__ = ["enqueue"]


async def enqueue(
    scripts: Scripts,
    *,
    task_id: str,
    agent: str,
    owner_id: str,
    conversation: Sequence[bytes],
    fields: Mapping[str, bytes],
) -> bool:
    """Store and queue a run. False if there is a run with this id, which is left as it is."""
    answer = await scripts.run("enqueue", task_id, agent, owner_id, *counted(conversation), *counted(flattened(fields)))
    return bool(answer[0] == b"OK")
