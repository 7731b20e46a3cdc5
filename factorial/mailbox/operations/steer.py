"""Messages to a run from outside: steering (`post.lua`) and cancelling (`cancel.lua`). Called by the orchestrator."""

from collections.abc import Sequence
from dataclasses import dataclass

from factorial.errors import CorruptedTaskDataError, InactiveTaskError, MailboxFullError, TaskNotFoundError
from factorial.mailbox.operations.upkeep import cascade
from factorial.mailbox.script import Scripts, counted
from factorial.task import TaskStatus

__all__ = ["MAX_WAITING_MAIL", "Cancelled", "cancel", "steer"]

MAX_WAITING_MAIL = 1000
"""Steering messages that may wait in one mailbox."""


async def steer(scripts: Scripts, *, task_id: str, message_id: str, messages: Sequence[bytes]) -> None:
    """Put `messages` into the run's mailbox. The same `message_id` again changes nothing.

    Raises `TaskNotFoundError`, `InactiveTaskError` if the run has ended, and `MailboxFullError`.
    """
    answer = await scripts.run("steer", task_id, message_id, MAX_WAITING_MAIL, *counted(messages))
    if answer[0] == b"FULL":
        raise MailboxFullError(
            f"task {task_id!r} has {answer[1]} steering messages waiting, and {MAX_WAITING_MAIL} is the most: "
            "wait for its next turn to read them"
        )
    _refuse(task_id, answer)


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The run ends as cancelled. `status` is `processing` until its holder obeys; `ended_here`: nobody held it, and
    this request has ended it."""

    status: TaskStatus
    ended_here: bool


async def cancel(scripts: Scripts, *, task_id: str) -> Cancelled:
    """Have the run end as cancelled.

    What it has spawned is cancelled with it: here, by its holder, or by maintenance if either dies on the way.
    Raises `TaskNotFoundError`, and `InactiveTaskError` if the run has completed or failed.
    """
    answer = await scripts.run("cancel", task_id)
    _refuse(task_id, answer)
    if answer[2]:
        await cascade(scripts)
    return Cancelled(TaskStatus(answer[1].decode()), ended_here=answer[3] == 1)


def _refuse(task_id: str, answer: list[bytes]) -> None:
    match answer[0]:
        case b"OK" | b"DUP":
            return
        case b"NOTFOUND":
            raise TaskNotFoundError(task_id)
        case b"ENDED":
            raise InactiveTaskError(task_id, answer[1].decode())
        case other:
            raise CorruptedTaskDataError(task_id, f"the mailbox gave an unknown answer for {task_id!r}: {other!r}")
