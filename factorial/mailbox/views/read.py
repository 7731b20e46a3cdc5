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
    """How many runs a batch has, how many have ended, and how; and what it is a batch of."""

    total: int
    ended: int
    completed: int
    failed: int
    cancelled: int
    max_turns: int
    """Turns of a run that count for progress; 0: progress counts runs."""
    turns: int
    """How many of these its runs have taken."""
    owner_id: str
    parent_id: str
    """The run that spawned it; empty if a client enqueued it."""
    seed: str
    """What the ids of its runs follow from."""
    created_at: datetime | None
    is_cancelled: bool
    """Whether it was cancelled as such."""

    @property
    def status(self) -> str:
        """`cancelled`, `completed` or `active`."""
        if self.is_cancelled:
            return "cancelled"
        return "completed" if self.ended == self.total else "active"

    @property
    def progress(self) -> float:
        """Percent."""
        if self.max_turns:
            return 100 * self.turns / (self.max_turns * self.total)
        return 100 * self.ended / self.total


_COUNTS = ("total", "ended", "completed", "failed", "cancelled", "max_turns", "turns")


async def read_batch(scripts: Scripts, batch_id: str) -> StoredBatch | None:
    """What is stored of a batch, or None if there is none."""
    stored = paired(await scripts.commands.execute("HGETALL", scripts.keys.batch(batch_id)))
    if "total" not in stored:
        return None
    counts = {name: int(stored.get(name, 0)) for name in _COUNTS}
    return StoredBatch(
        **counts,
        owner_id=stored.get("owner", b"").decode(),
        parent_id=stored.get("parent", b"").decode(),
        seed=stored.get("seed", b"").decode(),
        created_at=_moment(stored["created_at"]) if "created_at" in stored else None,
        is_cancelled="cancel_requested" in stored,
    )


async def first_events(scripts: Scripts, task_ids: Sequence[str]) -> list[str]:
    """The ids of the first events of these runs. Unknown runs are left out."""
    found = [await scripts.commands.execute("HGET", scripts.keys.run(task_id), "first_event") for task_id in task_ids]
    return [event_id.decode() for event_id in found if event_id]


def _moment(ms: bytes) -> datetime:
    return datetime.fromtimestamp(int(ms) / 1000, UTC)
