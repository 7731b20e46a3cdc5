"""Keeps the process's lease: one message per beat, whatever the number of runs.

It runs on the event loop that does the work, because a process whose loop is blocked is not alive. If the lease was
lost (the process was stopped for long, or the server restarted), the process registers again, and abandons the runs
that it no longer holds.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from factorial.actors.actor import Actor, Tick
from factorial.config import AgentWorkerConfig
from factorial.mailbox.operations import lease
from factorial.mailbox.script import Scripts

__all__ = ["Heartbeat"]

_logger = logging.getLogger(__name__)


class Heartbeat(Actor[None]):
    """Each time it registers, it calls `on_registered` with the runs that the process holds."""

    def __init__(
        self,
        scripts: Scripts,
        process: str,
        policy: AgentWorkerConfig,
        about: Mapping[str, Any],
        on_registered: Callable[[set[str]], None],
    ) -> None:
        super().__init__("heartbeat", policy.heartbeat_interval)
        self._scripts = scripts
        self._process = process
        self._policy = policy
        self._about = about
        self._on_registered = on_registered

    async def register(self) -> None:
        """Create the lease."""
        held = await lease.register(
            self._scripts,
            process=self._process,
            agent=self._about["agent"],
            lease=self._policy.lease,
            patience=self._policy.grace_to_register,
            about=self._about,
        )
        self._on_registered(held)

    async def receive(self, message: Tick | None) -> None:
        """Renew the lease; register if it is gone. A worker whose claim was refused for that asks for it, too."""
        if not await lease.beat(self._scripts, process=self._process, lease=self._policy.lease):
            _logger.warning("the lease of %s was lost: registering again", self._process)
            await self.register()
