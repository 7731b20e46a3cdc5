"""Counts the runs in each place (`queues.lua`). Called by `status` and for metrics."""

from collections.abc import Iterable
from dataclasses import dataclass

from factorial.mailbox.script import Scripts, counted

__all__ = ["Queue", "read_queues"]


@dataclass(frozen=True, slots=True)
class Queue:
    """How many runs of one agent are in each place."""

    ready: int
    """Queued, and free to be claimed."""
    throttled: int
    """Queued, until their owner has less than `owner_limit` held runs."""
    suspects: int
    """Queued, and claimed one to a process, because their processes crashed."""
    backoff: int
    """Due later, for the next attempt."""
    parked: int
    """Awaiting results of deferred tools, or children."""
    held: int
    """Held by a process."""


async def read_queues(scripts: Scripts, agents: Iterable[str]) -> dict[str, Queue]:
    """The counts of `agents`, and of all agents with a registered process, by name."""
    answer = await scripts.run("queues", *counted(sorted(set(agents))))
    return {answer[i].decode(): Queue(*map(int, answer[i + 1 : i + 7])) for i in range(0, len(answer), 7)}
