"""Recovers what dead processes held, queues what is due, and removes what is over (checklist O05, D05).

Safe to run in many processes at once: each step is one script, and does nothing twice.
"""

import logging
import random
from collections.abc import Mapping

from factorial.actors.actor import Actor, Tick
from factorial.config import MaintenanceWorkerConfig
from factorial.mailbox import lease, tend
from factorial.mailbox.script import Scripts
from factorial.task import TaskStatus
from factorial.utils import listed

__all__ = ["Maintenance"]

logger = logging.getLogger(__name__)


class Maintenance(Actor[None]):
    """Makes a round every `interval` seconds for one agent's queue; reclaiming is for all agents."""

    def __init__(self, name: str, scripts: Scripts, agent: str, config: MaintenanceWorkerConfig) -> None:
        super().__init__(name, config.interval * random.uniform(0.9, 1.1))
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
        """One round."""
        most = self._config.max_cleanup_batch
        taken = await lease.reclaim(self._scripts, most=most)
        if taken.go_on:
            logger.warning("reclaimed %d tasks of dead processes: %s", len(taken.go_on), listed(taken.go_on))
        if taken.given_up:
            logger.warning("given up as crash_loop, and failed: %s", listed(taken.given_up))
        await tend.promote(self._scripts, agent=self._agent)
        for status, ttl in self._ttl.items():
            removed = await tend.expire(self._scripts, agent=self._agent, status=status, ttl=ttl, most=most)
            if removed:
                logger.info("removed %d %s tasks of %s", removed, status, self._agent)
