"""Batches: stores and queues the runs of one (`enqueue_batch.lua`), and cancels it (`cancel_batch.lua`). Called by the
orchestrator; the batches of a run's children are stored by `spawn.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from factorial.errors import BatchNotFoundError, ConfigError
from factorial.mailbox.operations.cancel import cascade
from factorial.mailbox.script import Argument, Scripts, counted, flattened

__all__ = ["BatchRun", "NewBatch", "cancel_batch", "enqueue_batch"]

_AT_ONCE = 100
"""Runs that one script call stores, so that no call takes long."""
_DOOMED_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch to be stored."""

    batch_id: str
    seed: str
    """What the ids of its runs follow from."""
    owner_id: str
    agent: str
    total: int
    """How many runs it has."""
    max_turns: int = 0
    """Turns of a run that count for progress; 0: progress counts runs."""


@dataclass(frozen=True, slots=True)
class BatchRun:
    """A run of a batch."""

    task_id: str
    conversation: Sequence[bytes]
    fields: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Enqueued:
    """Where the events of the batch begin; empty if all of its runs existed already."""

    event_id: str
    cancelled: bool
    """The batch was cancelled before all of its runs were stored."""


async def enqueue_batch(scripts: Scripts, batch: NewBatch, runs: Sequence[BatchRun]) -> Enqueued:
    """Store and queue the runs. If some of them exist, these are left as they are, and the others are stored.

    Raises `ConfigError` if there is a batch with this id that has another owner, agent or size.
    """
    first_event = ""
    about = (batch.batch_id, batch.seed, batch.owner_id, batch.agent, batch.total, batch.max_turns)
    for first in range(0, len(runs), _AT_ONCE):
        some = runs[first : first + _AT_ONCE]
        described = [part for run in some for part in _described(run)]
        answer = await scripts.run("enqueue_batch", *about, len(some), *described)
        if answer[0] == b"CANCELLED":
            return Enqueued(first_event, cancelled=True)
        if answer[0] == b"OTHER":
            raise ConfigError(
                f"there is a batch {batch.batch_id!r} with another owner, agent or number of tasks: "
                "use another batch_id"
            )
        first_event = first_event or answer[1].decode()
    return Enqueued(first_event, cancelled=False)


def _described(run: BatchRun) -> list[Argument]:
    return [run.task_id, *counted(run.conversation), *counted(flattened(run.fields))]


async def cancel_batch(scripts: Scripts, *, batch_id: str, task_ids: Sequence[str]) -> None:
    """Cancel the runs of the batch that have not ended: here, by their holders, or by maintenance if this process dies.

    Raises `BatchNotFoundError`.
    """
    for first in range(0, len(task_ids), _DOOMED_AT_ONCE):
        some = task_ids[first : first + _DOOMED_AT_ONCE]
        if (await scripts.run("cancel_batch", batch_id, *counted(some)))[0] == b"NOTFOUND":
            raise BatchNotFoundError(batch_id)
    await cascade(scripts)
