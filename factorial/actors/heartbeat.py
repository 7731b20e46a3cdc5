"""Keeps the process's lease: one message per beat, whatever the number of runs.

It beats on the event loop that does the work: a process whose loop is blocked is not alive. A lease that was lost (a
long stop, a server that was restarted) is taken anew, and what is not ours any more is abandoned.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from factorial.actors.actor import Actor, Tick
from factorial.config import AgentWorkerConfig
from factorial.mailbox.operations import lease
from factorial.mailbox.script import Scripts

__all__ = ["Heartbeat"]

logger = logging.getLogger(__name__)


class Heartbeat(Actor[None]):
    """`on_registered` is told which runs the process holds, each time it had to register."""

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
        """Take a lease."""
        held = await lease.register(
            self._scripts,
            process=self._process,
            agent=self._about["agent"],
            lease=self._policy.lease,
            patience=2 * self._policy.heartbeat_interval,
            about=self._about,
        )
        self._on_registered(held)

    async def receive(self, message: Tick | None) -> None:
        """Beat; register if the lease is gone. A worker that was refused for want of a lease asks for a beat, too."""
        if not await lease.beat(self._scripts, process=self._process, lease=self._policy.lease):
            logger.warning("the lease of %s was lost: registering again", self._process)
            await self.register()
