"""Reclaims what dead processes held, queues what is due, and removes ended tasks whose time to live is over.

The tasks of a lost machine wait for the first, so it happens more often than the rest.

Safe to run in many processes at once: each operation is one script, and does nothing twice.
"""

import asyncio
import logging
import random
import time
from collections.abc import Mapping

from factorial.actors.actor import Actor, Tick
from factorial.config import MaintenanceWorkerConfig
from factorial.mailbox.operations import lease, upkeep
from factorial.mailbox.operations.cancel import cascade
from factorial.mailbox.script import Scripts
from factorial.mailbox.views.read import read_owner
from factorial.task import TaskStatus
from factorial.telemetry.task_log import TaskLog

__all__ = ["Maintenance"]

_logger = logging.getLogger(__name__)

_RECLAIM_EVERY = 0.5
"""Seconds between two looks at the leases; less if a whole round is due more often."""


class Maintenance(Actor[None]):
    """One round every `interval` seconds, for one agent's queue. Reclaiming is for all agents."""

    def __init__(self, name: str, scripts: Scripts, agent: str, config: MaintenanceWorkerConfig) -> None:
        super().__init__(name, min(config.interval, _RECLAIM_EVERY) * random.uniform(0.9, 1.1))
        self._pace = config.interval * random.uniform(0.9, 1.1)
        self._next_round = time.monotonic() + self._pace
        self._scripts = scripts
        self._agent = agent
        self._config = config

    @property
    def _ttl(self) -> Mapping[TaskStatus, float]:
        ttl = self._config.task_ttl
        return {
            TaskStatus.COMPLETED: ttl.completed_ttl,
            TaskStatus.FAILED: ttl.failed_ttl,
            TaskStatus.CANCELLED: ttl.cancelled_ttl,
        }

    async def receive(self, message: Tick | None) -> None:
        """Look at the leases, and take a round if it is due."""
        most = self._config.max_cleanup_batch
        taken = await lease.reclaim(self._scripts, most=most)
        if taken.go_on or taken.given_up:
            await self._tell(taken)
        if time.monotonic() >= self._next_round:
            await self._round(most)
            self._next_round = time.monotonic() + self._pace

    async def _round(self, most: int) -> None:
        await upkeep.promote(self._scripts, agent=self._agent)
        await cascade(self._scripts)
        for status, ttl in self._ttl.items():
            removed = await upkeep.expire(self._scripts, agent=self._agent, status=status, ttl=ttl, most=most)
            if removed:
                _logger.info("removed %d %s tasks of %s", removed, status, self._agent)

    async def _tell(self, taken: lease.Reclaimed) -> None:
        """Log what was taken back, whichever agents it belongs to."""
        for task_ids, tell in ((taken.go_on, TaskLog.reclaimed), (taken.given_up, TaskLog.given_up)):
            known = await asyncio.gather(*(read_owner(self._scripts, task_id) for task_id in task_ids))
            for task_id, (owner_id, agent) in zip(task_ids, (one or (None, "?") for one in known), strict=True):
                tell(TaskLog(task_id, agent, owner_id))
