"""A task: the durable execution of an agent over a context.

The transitions of its status, as the scripts of `mailbox/operations/` enforce them:

    from                 to
    queued               processing (claim) · cancelled
    processing           completed · failed · cancelled · queued (release, reclaim) · backoff · pending_* (park)
    pending_*            queued (everything it awaits has arrived, or has timed out) · cancelled
    backoff              queued (when due) · cancelled
    completed, failed, cancelled      none: they are final
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Generic

from factorial._core.json import dump_json, load_json
from factorial.context import ContextType
from factorial.errors import ConfigError, InvalidTaskIdError
from factorial.utils import is_valid_task_id

__all__ = [
    "Task", "TaskMetadata", "TaskStatus", "batch_task_ids", "check_owner_id", "check_task_id", "derived_id",
    "new_task_id",
]  # fmt: skip

_OWNER_ID_LIMIT = 256


class TaskStatus(StrEnum):
    """Where a task stands. Compares equal to, and prints as, the plain word."""

    QUEUED = "queued"
    PROCESSING = "processing"
    BACKOFF = "backoff"
    PENDING_TOOL_RESULTS = "pending_tool_results"
    """Parked until the results of deferred tools come; of children, too, if it waits for both."""
    PENDING_CHILD_TASKS = "pending_child_tasks"
    """Parked until the tasks that it has spawned have ended."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    ACTIVE = "active"
    """A name of nfactorial 0.1.x. No task has this status."""
    PAUSED = "paused"
    """A name of nfactorial 0.1.x. No task has this status."""

    @property
    def is_final(self) -> bool:
        """Whether the run has ended."""
        return self in (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)


@dataclass(slots=True)
class TaskMetadata:
    """Whose task it is and when it was made."""

    owner_id: str
    parent_id: str | None = None
    """The task that spawned it."""
    batch_id: str | None = None
    """The batch that it was spawned with."""
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    max_turns: int | None = None
    """What the progress of the task's batch counts with. It does not limit the run: `Agent(max_turns=)` does."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data; `created_at` in seconds since 1970."""
        return {
            "owner_id": self.owner_id,
            "parent_id": self.parent_id,
            "batch_id": self.batch_id,
            "created_at": self.created_at.timestamp(),
            "max_turns": self.max_turns,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TaskMetadata":
        """What `to_dict` wrote."""
        return cls(
            owner_id=data["owner_id"],
            parent_id=data.get("parent_id"),
            batch_id=data.get("batch_id"),
            created_at=datetime.fromtimestamp(float(data["created_at"]), UTC),
            max_turns=data.get("max_turns"),
        )

    def to_json(self) -> str:
        """As JSON text."""
        return dump_json(self.to_dict()).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> "TaskMetadata":
        """What `to_json` wrote."""
        return cls.from_dict(load_json(text))


def new_task_id() -> str:
    """A fresh random task id."""
    return uuid.uuid4().hex


def derived_id(seed: str) -> str:
    """The id that follows from `seed`: always the same."""
    return uuid.uuid5(uuid.NAMESPACE_OID, seed).hex


def batch_task_ids(seed: str, count: int) -> list[str]:
    """The ids of the tasks of a batch, in their order."""
    return [derived_id(f"{seed}:{number}") for number in range(count)]


@dataclass(slots=True)
class Task(Generic[ContextType]):
    """One run of the agent named `agent` over the context `payload`.

    Made by `agent.create_task(...)`; it lives in Redis from `orchestrator.enqueue_task(...)` on, and this
    object is not updated then: ask `get_task_status` and `get_task_data`.
    """

    agent: str
    payload: ContextType
    metadata: TaskMetadata
    id: str = field(default_factory=new_task_id)
    status: TaskStatus = TaskStatus.QUEUED
    retries: int = 0
    pickups: int = 0

    @property
    def owner_id(self) -> str:
        """Whose event stream the task's events go to."""
        return self.metadata.owner_id

    @classmethod
    def create(
        cls,
        owner_id: str,
        agent: str,
        payload: ContextType,
        batch_id: str | None = None,
        max_turns: int | None = None,
    ) -> "Task[ContextType]":
        """A task for the agent of this name. `agent.create_task` knows the agent, and checks the payload."""
        metadata = TaskMetadata(check_owner_id(owner_id), batch_id=batch_id, max_turns=max_turns)
        return Task(agent, payload, metadata)

    def to_dict(self) -> dict[str, Any]:
        """The task as plain JSON data."""
        return {
            "id": self.id,
            "status": self.status.value,
            "agent": self.agent,
            "payload": self.payload.to_dict(),
            "pickups": self.pickups,
            "retries": self.retries,
            "metadata": self.metadata.to_dict(),
        }

    def to_json(self) -> str:
        """The task as JSON text."""
        return dump_json(self.to_dict()).decode()

    @classmethod
    def from_json(cls, text: str | bytes, context_class: type[ContextType]) -> "Task[ContextType]":
        """The task that `to_json` told of. Raises pydantic's `ValidationError`."""
        return cls.from_dict(load_json(text), context_class)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], context_class: type[ContextType]) -> "Task[ContextType]":
        """The task that `to_dict` or `orchestrator.get_task_data` told of. Raises pydantic's `ValidationError`."""
        return Task(
            agent=data["agent"],
            payload=context_class.from_dict(data["payload"]),
            metadata=TaskMetadata.from_dict(data["metadata"]),
            id=data["id"],
            status=TaskStatus(data["status"]),
            retries=data["retries"],
            pickups=data["pickups"],
        )


def check_task_id(task_id: object) -> str:
    """`task_id` if it can be one; raises `InvalidTaskIdError` otherwise."""
    if isinstance(task_id, str) and is_valid_task_id(task_id):
        return task_id
    raise InvalidTaskIdError(task_id)


def check_owner_id(owner_id: object) -> str:
    """`owner_id` if it can name an owner: 1 to 256 printable characters. Raises `ConfigError` otherwise."""
    if isinstance(owner_id, str) and 0 < len(owner_id) <= _OWNER_ID_LIMIT and owner_id.isprintable():
        return owner_id
    shown = repr(owner_id)[:80]
    raise ConfigError(
        f"owner_id={shown} cannot name an owner: use a string of 1 to {_OWNER_ID_LIMIT} printable characters"
    )
