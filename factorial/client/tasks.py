"""Enqueue tasks, and read what is stored of them."""

from dataclasses import replace
from typing import Any

from factorial._core.conversation import answered
from factorial._core.text import iso
from factorial.agent.agent import BaseAgent
from factorial.agent.lifecycle.codec import decode_message, encode_fields, encode_messages, shown_fields
from factorial.agent.lifecycle.fidelity import check_comes_back
from factorial.context import ContextType, opening_messages
from factorial.errors import ConfigError, ContextError, CorruptedTaskDataError
from factorial.mailbox.operations.enqueue import enqueue
from factorial.mailbox.script import Scripts
from factorial.mailbox.views.read import read_run
from factorial.models.answer import last_finish_reason
from factorial.task import Task, TaskMetadata, check_owner_id, check_task_id
from factorial.telemetry.task_log import TaskLog

__all__ = ["checked_task", "enqueue_task", "task_data"]


def checked_task(
    agent: BaseAgent[ContextType], task: Task[ContextType] | None, owner_id: str | None, payload: ContextType | None
) -> Task[ContextType]:
    """`task`, or a new one for `owner_id` over `payload`, if `agent` can execute it.

    Raises `ConfigError` for arguments that do not fit together, and `ContextError` for a context of another class.
    """
    if not isinstance(agent, BaseAgent):
        raise ConfigError(f"enqueue_task(agent={agent!r}): give the agent itself, not its name")
    if task is not None and not isinstance(task, Task):
        raise ConfigError(f"enqueue_task(task={task!r}): give what agent.create_task(...) made")
    if task is None:
        if owner_id is None or payload is None:
            raise ConfigError("enqueue_task: give task=..., or owner_id=... and payload=...")
        task = agent.create_task(owner_id, payload)
    elif owner_id is not None or payload is not None:
        raise ConfigError("enqueue_task: task and owner_id/payload exclude each other: give one form")
    if task.agent != agent.name:
        raise ConfigError(f"enqueue_task: the task is for agent {task.agent!r}, and the agent is {agent.name!r}")
    accepted = agent.accepted_payload(task.payload)
    return task if accepted is task.payload else replace(task, payload=accepted)


async def enqueue_task(scripts: Scripts, task: Task[Any]) -> str:
    """Store and queue `task`. Returns the id of its first event; empty if the task was stored already."""
    fields = encode_fields(task.payload)
    check_comes_back(task.payload, fields)
    stored = await enqueue(
        scripts,
        task_id=check_task_id(task.id),
        agent=task.agent,
        owner_id=check_owner_id(task.owner_id),
        conversation=encode_messages(opening_messages(task.payload)),
        fields=fields,
    )
    if stored.event_id:
        TaskLog(task.id, task.agent, task.owner_id).enqueued()
    return stored.event_id


async def task_data(scripts: Scripts, task_id: str) -> dict[str, Any] | None:
    """What is stored of the task, as plain data; None if there is no such task."""
    run = await read_run(scripts, check_task_id(task_id))
    if run is None:
        return None
    try:
        messages = [decode_message(message) for message in run.conversation]
        # A script that ends a parked run leaves the calls open that it was parked for.
        messages = answered(messages) if run.status.is_final else messages
        payload = shown_fields(run.fields) | {"messages": messages}
    except (ContextError, ValueError) as damage:
        raise CorruptedTaskDataError(task_id, f"what is stored for task {task_id!r} cannot be read: {damage}") from None
    metadata = TaskMetadata(run.owner_id, run.parent_id or None, run.batch_id or None, run.created_at)
    return {
        "id": run.task_id,
        "owner_id": run.owner_id,
        "agent": run.agent,
        "status": run.status.value,
        "payload": payload,
        "retries": run.retries,
        "pickups": run.pickups,
        "error": run.error or None,
        "finish_reason": last_finish_reason(messages),
        "process": run.holder or None,
        "metadata": metadata.to_dict(),
        "parent_id": run.parent_id or None,
        "batch_id": run.batch_id or None,
        "awaits": run.awaits,
        "created_at": iso(run.created_at),
        "ended_at": iso(run.ended_at) if run.ended_at else None,
    }
