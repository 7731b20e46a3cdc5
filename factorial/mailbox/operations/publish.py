"""Publishes events that belong to no change of a run (`publish.lua`). Used by the orchestrator."""

import uuid

from factorial.events import BaseEvent, attributed, encode_event
from factorial.mailbox.script import Scripts

__all__ = ["Publisher"]


class Publisher:
    """Publishes events of one owner, or of one of the owner's tasks, for callers that do not hold the run."""

    def __init__(
        self, scripts: Scripts, owner_id: str, task_id: str | None = None, agent_name: str | None = None
    ) -> None:
        self._scripts = scripts
        self._owner_id = owner_id
        self._task_id = task_id
        self._agent_name = agent_name

    async def publish_event(self, event: BaseEvent) -> None:
        """Publish `event`, once, however often it is sent. Ids that it does not have are filled in."""
        event = attributed(event, self._task_id, self._owner_id, self._agent_name)
        await self._scripts.run("publish", self._owner_id, uuid.uuid4().hex, encode_event(event))
