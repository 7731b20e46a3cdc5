"""Cancels a run, and the runs that it spawned (`cancel.lua`, `cascade.lua`). Called by the orchestrator, by the durable
host and by the maintenance actor.
"""

from dataclasses import dataclass

from factorial.mailbox.operations.steer import raise_refusal
from factorial.mailbox.script import Scripts
from factorial.task import TaskStatus

__all__ = ["Cancelled", "cancel", "cascade"]

_AT_ONCE = 200
"""Runs that one script call cancels, so that no call takes long."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The cancel was accepted: the run ends as cancelled."""

    status: TaskStatus
    """`processing` until the holder has cancelled it."""
    ended_here: bool
    """No process held the run, and this request ended it."""


async def cancel(scripts: Scripts, *, task_id: str) -> Cancelled:
    """Cancel the run.

    The runs that it spawned are cancelled too: here, by its holder, or by maintenance if either dies before.
    Raises `TaskNotFoundError`, and `InactiveTaskError` if the run has completed or failed.
    """
    answer = await scripts.run("cancel", task_id)
    raise_refusal(task_id, answer)
    if answer[2]:
        await cascade(scripts)
    return Cancelled(TaskStatus(answer[1].decode()), ended_here=answer[3] == 1)


async def cascade(scripts: Scripts) -> None:
    """Cancel all runs whose parent was cancelled or no longer awaits them."""
    while await scripts.run("cascade", _AT_ONCE):
        pass
