"""A task: one run of an agent over one context, and what can become of it.

The transition table, as the mailbox's scripts enforce it (`mailbox/*.lua`):

    status               leaves for
    queued               processing (claim) · cancelled
    processing           completed · failed · cancelled · queued (release, reclaim) · backoff
    backoff              queued (when due) · cancelled
    completed, failed, cancelled      nothing: they end the run
"""

import re
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

from factorial.context import AgentContext
from factorial.errors import ConfigError, InvalidTaskIdError

__all__ = [
    "NextStep", "Continue", "Complete", "Backoff", "Release", "Fail", "Cancel",
    "Task", "TaskMetadata", "TaskStatus", "check_owner_id", "check_task_id", "new_task_id",
]  # fmt: skip

ContextType = TypeVar("ContextType", bound=AgentContext)

_TASK_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_OWNER_ID_LIMIT = 256


class TaskStatus(StrEnum):
    """Where a task stands. Compares equal to, and prints as, the plain word (checklist O07)."""

    QUEUED = "queued"
    PROCESSING = "processing"
    BACKOFF = "backoff"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the run has ended."""
        return self in (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)


@dataclass(slots=True)
class TaskMetadata:
    """Whose task it is and when it was made."""

    owner_id: str
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


def new_task_id() -> str:
    """A fresh random task id."""
    return uuid.uuid4().hex


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


def check_task_id(task_id: object) -> str:
    """`task_id` if it can be one; raises `InvalidTaskIdError` otherwise."""
    if isinstance(task_id, str) and _TASK_ID.fullmatch(task_id):
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


# What a turn asks of its host. A closed union: `match` on it and close with `assert_never`.


@dataclass(frozen=True, slots=True)
class Continue:
    """Another turn follows, here."""


@dataclass(frozen=True, slots=True)
class Complete:
    """The run has its output."""

    output: Any


@dataclass(frozen=True, slots=True)
class Backoff:
    """The turn failed; try again after `delay` seconds. One retry is spent."""

    delay: float
    error: BaseException


@dataclass(frozen=True, slots=True)
class Release:
    """Give the task back, to be taken up by any worker. No retry is spent."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The run ends as failed."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Cancel:
    """The run ends as cancelled: somebody asked for it."""


NextStep = Continue | Complete | Backoff | Release | Fail | Cancel
