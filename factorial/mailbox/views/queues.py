"""How much work waits, and how much is under way (`queues.lua`). Called by `status`; changes nothing."""

from collections.abc import Iterable
from dataclasses import dataclass

from factorial.mailbox.script import Scripts, counted

__all__ = ["Queue", "read_queues"]


@dataclass(frozen=True, slots=True)
class Queue:
    """How many runs of one agent there are."""

    ready: int
    """To be taken up."""
    throttled: int
    """To be taken up when their owner has less than `owner_limit` runs held."""
    suspects: int
    """To be taken up one by one, since their processes crashed."""
    backoff: int
    """To be tried again later."""
    parked: int
    """Awaiting results of deferred tools, or children."""
    held: int
    """Executed by some process now."""


async def read_queues(scripts: Scripts, agents: Iterable[str]) -> dict[str, Queue]:
    """The queues of `agents`, and of all agents that some process works for, by name."""
    answer = await scripts.run("queues", *counted(sorted(set(agents))))
    return {answer[i].decode(): Queue(*map(int, answer[i + 1 : i + 7])) for i in range(0, len(answer), 7)}
