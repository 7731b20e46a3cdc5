"""Puts steering messages into a run's mailbox (`steer.lua`). Called by the orchestrator."""

from collections.abc import Sequence

from factorial.errors import CorruptedTaskDataError, InactiveTaskError, MailboxFullError, TaskNotFoundError
from factorial.mailbox.script import Scripts, counted

__all__ = ["MAX_UNREAD_MAIL", "raise_refusal", "steer"]

MAX_UNREAD_MAIL = 1000
"""The most unread steering messages of one run."""


async def steer(scripts: Scripts, *, task_id: str, message_id: str, messages: Sequence[bytes]) -> None:
    """Put `messages` into the run's mailbox. The same `message_id` again changes nothing.

    Raises `TaskNotFoundError`, `InactiveTaskError` if the run has ended, and `MailboxFullError`.
    """
    answer = await scripts.run("steer", task_id, message_id, MAX_UNREAD_MAIL, *counted(messages))
    if answer[0] == b"FULL":
        raise MailboxFullError(
            f"task {task_id!r} has {answer[1]} steering messages waiting, and {MAX_UNREAD_MAIL} is the most: "
            "wait for its next turn to read them"
        )
    raise_refusal(task_id, answer)


def raise_refusal(task_id: str, answer: list[bytes]) -> None:
    """Raise the error for an answer of `steer.lua` or `cancel.lua` that refuses the request."""
    match answer[0]:
        case b"OK" | b"DUP":
            return
        case b"NOTFOUND":
            raise TaskNotFoundError(task_id)
        case b"ENDED":
            raise InactiveTaskError(task_id, answer[1].decode())
        case other:
            raise CorruptedTaskDataError(task_id, f"a script gave an unknown answer for task {task_id!r}: {other!r}")
