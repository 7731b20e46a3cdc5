"""What keeps the queues in order: due runs are queued (`promote.lua`), ended ones removed (`expire.lua`), and what the
cancelled have spawned is cancelled (`cascade.lua`).

Called by the maintenance actor, and by whoever cancels.
"""

from factorial.mailbox.script import Scripts
from factorial.task import TaskStatus

__all__ = ["cascade", "expire", "promote"]

_MOST_CANCELLED = 200
"""Runs that one script call cancels: no call takes long."""


async def promote(scripts: Scripts, *, agent: str) -> int:
    """Queue the agent's runs that are due, and wake a worker if anything is ready. Tells how many became ready."""
    return int(await scripts.run("promote", agent))


async def expire(scripts: Scripts, *, agent: str, status: TaskStatus, ttl: float, most: int) -> int:
    """Remove the agent's runs that ended as `status` more than `ttl` seconds ago. Tells how many."""
    total = 0
    while True:
        removed = int(await scripts.run("expire", agent, status, round(ttl * 1000), most))
        total += removed
        if removed < most:
            return total


async def cascade(scripts: Scripts) -> None:
    """Cancel all runs whose parent was cancelled, or waits for them no more."""
    while await scripts.run("cascade", _MOST_CANCELLED):
        pass
