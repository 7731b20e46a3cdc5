"""Upkeep of the queues: queues what is due (`promote.lua`), and removes what has expired (`expire.lua`).

Called by the maintenance actor.
"""

from factorial.mailbox.script import Scripts
from factorial.task import TaskStatus

__all__ = ["expire", "promote"]


async def promote(scripts: Scripts, *, agent: str) -> int:
    """Queue the agent's runs that are due, and wake a worker if anything is ready. Returns how many were due."""
    return int(await scripts.run("promote", agent))


async def expire(scripts: Scripts, *, agent: str, status: TaskStatus, ttl: float, most: int) -> int:
    """Remove the agent's runs that ended with `status` more than `ttl` seconds ago, `most` at a time.

    Returns how many were removed.
    """
    total = 0
    while True:
        removed = int(await scripts.run("expire", agent, status, round(ttl * 1000), most))
        total += removed
        if removed < most:
            return total
