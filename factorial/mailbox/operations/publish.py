"""Publishes events that belong to no change of a run (`publish.lua`). Used by the orchestrator."""

import uuid

from factorial.events import BaseEvent, encode_event
from factorial.mailbox.script import Scripts

__all__ = ["Publisher"]


class Publisher:
    """Publishes events of one owner, for callers that do not hold the run."""

    def __init__(self, scripts: Scripts, owner_id: str) -> None:
        self._scripts = scripts
        self._owner_id = owner_id

    async def publish_event(self, event: BaseEvent) -> None:
        """Publish `event`, once, however often it is sent."""
        await self._scripts.run("publish", self._owner_id, uuid.uuid4().hex, encode_event(event))
