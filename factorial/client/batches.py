"""Batches of tasks that a client enqueues together: enqueue, read and cancel them."""

import uuid
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from factorial._core.text import with_article
from factorial.agent.agent import BaseAgent
from factorial.agent.lifecycle.codec import encode_fields, encode_messages
from factorial.agent.lifecycle.fidelity import check_comes_back
from factorial.context import AgentContext, Batch, BatchMetadata, opening_messages
from factorial.errors import BatchNotFoundError, ConfigError, ContextError
from factorial.mailbox.operations.batch import BatchRun, NewBatch, cancel_batch, enqueue_batch
from factorial.mailbox.script import Scripts
from factorial.mailbox.views.read import StoredBatch, read_batch
from factorial.task import batch_task_ids, check_owner_id, check_task_id
from factorial.telemetry.task_log import TaskLog

__all__ = ["Batches", "batch_data"]

_MOST_UNFINISHED = 100

_Content = tuple[list[bytes], dict[str, bytes]]
"""A task as it is stored: its conversation, and its other fields."""


class Batches:
    """Enqueues and cancels batches, and remembers the ids of those that failed: a call that is repeated goes on."""

    def __init__(self) -> None:
        self._unfinished: OrderedDict[bytes, str] = OrderedDict()
        """By the digest of a call: the id of its batch, some tasks of which may be stored."""

    async def enqueue(
        self, scripts: Scripts, agent: BaseAgent[Any], owner_id: str, payloads: object, batch_id: str | None
    ) -> Batch:
        """Store and queue a task for each payload."""
        check_owner_id(owner_id)
        if batch_id is not None:
            check_task_id(batch_id)
        contents = [_encoded(agent, payload, position) for position, payload in enumerate(_listed(agent, payloads))]
        chosen = batch_id or self._begun(agent.name, owner_id, contents) or uuid.uuid4().hex
        metadata = _metadata(owner_id, len(contents), agent.max_turns)
        task_ids = batch_task_ids(chosen, len(contents))
        batch = NewBatch(chosen, chosen, owner_id, agent.name, len(contents), agent.max_turns or 0)
        runs = [
            BatchRun(task_id, conversation, fields)
            for task_id, (conversation, fields) in zip(task_ids, contents, strict=True)
        ]
        try:
            stored = await enqueue_batch(scripts, batch, runs)
        except ConfigError:
            raise
        except BaseException:  # also a cancellation: some of the tasks may be stored
            self._unfinished[_digest(agent.name, owner_id, contents)] = chosen
            if len(self._unfinished) > _MOST_UNFINISHED:
                self._unfinished.popitem(last=False)
            raise
        if stored.event_id:
            for task_id in task_ids:
                TaskLog(task_id, agent.name, owner_id).enqueued()
        if stored.cancelled:
            metadata.status = "cancelled"
        return Batch(chosen, task_ids, metadata)

    def _begun(self, agent: str, owner_id: str, contents: Sequence[_Content]) -> str | None:
        """The id of the batch that an earlier call with these contents has begun. It is forgotten."""
        return self._unfinished.pop(_digest(agent, owner_id, contents), None) if self._unfinished else None

    async def cancel(self, scripts: Scripts, batch_id: str) -> Batch:
        """Cancel the tasks of the batch that have not ended. Raises `BatchNotFoundError`."""
        batch = await read_batch(scripts, check_task_id(batch_id))
        if batch is None or not batch.seed:
            raise BatchNotFoundError(batch_id)
        task_ids = batch_task_ids(batch.seed, batch.total)
        if batch.ended < batch.total:
            await cancel_batch(scripts, batch_id=batch_id, task_ids=task_ids)
            batch = await read_batch(scripts, batch_id) or batch
        return Batch(batch_id, task_ids, _metadata_of(batch))


def _listed(agent: object, payloads: object) -> Collection[Any]:
    if not isinstance(agent, BaseAgent):
        raise ConfigError(f"enqueue_batch(agent={agent!r}): give the agent itself, not its name")
    if isinstance(payloads, AgentContext | Mapping | str) or not isinstance(payloads, Collection):
        raise ConfigError(
            f"enqueue_batch: payloads are {with_article(type(payloads).__name__)}: give a list of contexts"
        )
    return payloads


def _encoded(agent: BaseAgent[Any], payload: object, position: int) -> _Content:
    try:
        context = agent.accepted_payload(payload)
        fields = encode_fields(context)
        check_comes_back(context, fields)
        return encode_messages(opening_messages(context)), fields
    except ContextError as unfit:
        raise ContextError(f"payloads[{position}]: {unfit}") from None


def _digest(agent: str, owner_id: str, contents: Sequence[_Content]) -> bytes:
    digest = sha256(repr((agent, owner_id, len(contents))).encode())
    for conversation, fields in contents:
        digest.update(repr((conversation, fields)).encode())
    return digest.digest()


def _metadata(owner_id: str, total: int, max_turns: int | None) -> BatchMetadata:
    status = "active" if total else "completed"
    return BatchMetadata(owner_id, total_tasks=total, max_progress=total * (max_turns or 1), status=status)


def _metadata_of(batch: StoredBatch) -> BatchMetadata:
    return BatchMetadata(
        owner_id=batch.owner_id,
        created_at=batch.created_at or datetime.now(UTC),
        total_tasks=batch.total,
        max_progress=batch.total * (batch.max_turns or 1),
        status=batch.status,
        parent_id=batch.parent_id or None,
    )


async def batch_data(scripts: Scripts, batch_id: str) -> dict[str, Any] | None:
    """How many tasks of the batch have ended, as plain data; None if there is no such batch."""
    batch = await read_batch(scripts, check_task_id(batch_id))
    if batch is None:
        return None
    return {
        "id": batch_id,
        "total_tasks": batch.total,
        "completed_tasks": batch.ended,
        "progress": batch.progress,
        "status": batch.status,
        "completed": batch.completed,
        "failed": batch.failed,
        "cancelled": batch.cancelled,
    }
