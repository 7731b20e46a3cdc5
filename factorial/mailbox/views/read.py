"""Reads what is stored of runs and batches (`read.lua`). Called by the orchestrator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from factorial.errors import CorruptedTaskDataError
from factorial.mailbox.script import Scripts, paired
from factorial.task import TaskStatus

__all__ = ["StoredBatch", "StoredRun", "first_events", "read_batch", "read_owner", "read_run", "read_status"]


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as it is stored."""

    task_id: str
    owner_id: str
    agent: str
    status: TaskStatus
    conversation: Sequence[bytes]
    """The messages, as JSON."""
    fields: Mapping[str, bytes]
    """The other fields of the context, as JSON."""
    retries: int
    pickups: int
    error: str
    holder: str
    """The process that holds it, or empty."""
    created_at: datetime
    ended_at: datetime | None
    parent_id: str
    batch_id: str
    """Of a child that was spawned in a batch; else empty."""
    awaits: list[str]
    """While it is parked: `tool:<call id>` and `child:<task id>` of everything that has not arrived."""


async def read_status(scripts: Scripts, task_id: str) -> TaskStatus | None:
    """The run's status, or None if there is no such run."""
    status = await scripts.commands.execute("HGET", scripts.keys.run(task_id), "status")
    return TaskStatus(status.decode()) if status else None


async def read_owner(scripts: Scripts, task_id: str) -> tuple[str, str] | None:
    """The ids of the run's owner and agent, or None if there is no such run."""
    owner_id, agent = await scripts.commands.execute("HMGET", scripts.keys.run(task_id), "owner", "agent")
    return (owner_id.decode(), agent.decode()) if owner_id and agent else None


async def read_run(scripts: Scripts, task_id: str) -> StoredRun | None:
    """The whole run, or None if there is none. Raises `CorruptedTaskDataError` if it cannot be read."""
    run, conversation, fields, awaits = await scripts.run("read", task_id)
    if not run:
        return None
    try:
        return _assemble(
            task_id, paired(run), conversation, paired(fields), [key.decode(errors="replace") for key in awaits]
        )
    except (KeyError, ValueError) as damage:
        raise CorruptedTaskDataError(task_id, f"what is stored for task {task_id!r} cannot be read: {damage}") from None


def _assemble(
    task_id: str,
    run: dict[str, bytes],
    conversation: Sequence[bytes],
    fields: dict[str, bytes],
    awaits: list[str],
) -> StoredRun:
    return StoredRun(
        task_id=task_id,
        owner_id=run["owner"].decode(),
        agent=run["agent"].decode(),
        status=TaskStatus(run["status"].decode()),
        conversation=conversation,
        fields=fields,
        retries=int(run.get("retries", 0)),
        pickups=int(run.get("pickups", 0)),
        error=run.get("error", b"").decode(),
        holder=run.get("holder", b"").decode(),
        created_at=_moment(run["created_at"]),
        ended_at=_moment(run["ended_at"]) if "ended_at" in run else None,
        parent_id=run.get("parent", b"").decode(),
        batch_id=run.get("batch", b"").decode(),
        awaits=awaits,
    )


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """How many runs a batch has, how many have ended, and how."""

    total: int
    ended: int
    completed: int
    failed: int
    cancelled: int


async def read_batch(scripts: Scripts, batch_id: str) -> StoredBatch | None:
    """The counts of a batch, or None if there is none."""
    names = ("total", "ended", "completed", "failed", "cancelled")
    total, *counts = await scripts.commands.execute("HMGET", scripts.keys.batch(batch_id), *names)
    return StoredBatch(int(total), *(int(count or 0) for count in counts)) if total else None


async def first_events(scripts: Scripts, task_ids: Sequence[str]) -> list[str]:
    """The ids of the first events of these runs. Unknown runs are left out."""
    found = [await scripts.commands.execute("HGET", scripts.keys.run(task_id), "first_event") for task_id in task_ids]
    return [event_id.decode() for event_id in found if event_id]


def _moment(ms: bytes) -> datetime:
    return datetime.fromtimestamp(int(ms) / 1000, UTC)
