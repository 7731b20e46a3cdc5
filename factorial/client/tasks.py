"""Enqueue tasks, and read what is stored of them."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from factorial._core.conversation import answered
from factorial._core.text import iso
from factorial.agent.agent import BaseAgent
from factorial.agent.lifecycle.codec import decode_context, decode_message, encode_fields, encode_messages, shown_fields
from factorial.agent.lifecycle.fidelity import check_comes_back
from factorial.context import ContextType, opening_messages
from factorial.errors import ConfigError, ContextError, CorruptedTaskDataError, RetryableError
from factorial.mailbox.operations.enqueue import enqueue
from factorial.mailbox.script import Scripts
from factorial.mailbox.views.read import StoredRun, read_run
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


async def enqueue_task(scripts: Scripts, task: Task[ContextType]) -> Task[ContextType]:
    """Store and queue `task`. If a task with its id is stored already, that one is returned and left as it is."""
    fields = encode_fields(task.payload)
    check_comes_back(task.payload, fields)
    conversation = encode_messages(opening_messages(task.payload))
    is_new = await enqueue(
        scripts,
        task_id=check_task_id(task.id),
        agent=task.agent,
        owner_id=check_owner_id(task.owner_id),
        conversation=conversation,
        fields=fields,
    )
    if is_new:
        TaskLog(task.id, task.agent, task.owner_id).enqueued()
        return task
    run = await read_run(scripts, task.id)
    if run is None:  # its time to live has ended just now
        return task
    if differences := _differences(task, run, conversation, fields):
        TaskLog(task.id, run.agent, run.owner_id).problem(
            logging.WARNING,
            f"it is stored already ({run.status}), with another {' and another '.join(differences)}: it is left as it "
            "is. Use a new id for a new task",
        )
    return _stored_task(task, run)


def _differences(
    task: Task[Any], run: StoredRun, conversation: Sequence[bytes], fields: Mapping[str, bytes]
) -> list[str]:
    """What of `task` differs from what is stored. The fields of a run that has begun may have changed since."""
    begins_alike = list(run.conversation[: len(conversation)]) == list(conversation)
    has_begun = run.pickups > 0
    found = {
        "agent": run.agent != task.agent,
        "owner_id": run.owner_id != task.owner_id,
        "payload": not begins_alike or (not has_begun and dict(run.fields) != dict(fields)),
    }
    return [name for name, differs in found.items() if differs]


def _stored_task(task: Task[ContextType], run: StoredRun) -> Task[ContextType]:
    """The stored task. Its payload is the given one if the stored one is not of the same class."""
    payload = task.payload
    if run.agent == task.agent:
        with suppress(ContextError, RetryableError):
            payload = decode_context(type(payload), run.fields, run.conversation)
    return Task(
        run.agent, payload, _metadata_of(run), id=run.task_id, status=run.status, retries=run.retries,
        pickups=run.pickups,
    )  # fmt: skip


def _metadata_of(run: StoredRun) -> TaskMetadata:
    return TaskMetadata(run.owner_id, run.parent_id or None, run.batch_id or None, run.created_at)


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
        "metadata": _metadata_of(run).to_dict(),
        "parent_id": run.parent_id or None,
        "batch_id": run.batch_id or None,
        "awaits": run.awaits,
        "created_at": iso(run.created_at),
        "ended_at": iso(run.ended_at) if run.ended_at else None,
    }
