"""What a run needs from the place where it lives. One lifecycle, two hosts: `inline.py`, and `actors/execution.py`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from factorial.context import AgentContext
from factorial.events import BaseEvent
from factorial.task import Cancel, NextStep, Release

__all__ = ["Answer", "Host", "Left", "Proceed", "Recorded", "Retried", "Settlement"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A finished step as the journal keeps it. `message` is the part that goes into the conversation."""

    result: bytes
    message: bytes = b""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a turn came to: handed by the run to its host."""

    step: NextStep
    context: AgentContext
    turn_done: bool
    """Whether the turn ran to its end: then its messages and changes are kept. If not, its finished steps are."""
    endings: Sequence[BaseEvent] = field(default=())
    """Events that tell of `step`: published if the host carries it out, and not if a steer or a cancel comes first."""


@dataclass(frozen=True, slots=True)
class Proceed:
    """Take another turn. Steering messages that came have been appended to the context."""


@dataclass(frozen=True, slots=True)
class Retried:
    """The backoff is over, and the context is as it was before the failed turn: take the turn again."""


@dataclass(frozen=True, slots=True)
class Left:
    """The run has ended, or is somebody else's now."""


Answer = Proceed | Retried | Left


class Host(Protocol):
    """Keeps what a run has done, and decides with it what comes next."""

    async def publish_event(self, event: BaseEvent) -> None:
        """Publish `event` in order with the run's other events."""
        ...

    async def publish_live(self, event: BaseEvent) -> None:
        """Publish `event` to those who listen now; it is not kept."""
        ...

    def recall(self, key: str) -> Recorded | None:
        """The step `key` of this turn, if it was finished before: it is not taken again."""
        ...

    async def record(self, key: str, step: Recorded, *, urgent: bool) -> None:
        """Keep a finished step. `urgent`: return when it is kept; otherwise the turn's end follows at once, and it
        may be kept together with that."""
        ...

    async def settle(self, settlement: Settlement) -> Answer:
        """Carry out what the turn came to. Raises `ContextError` if the context cannot be stored."""
        ...

    def interruption(self) -> Cancel | Release | None:
        """Why the run's asyncio task was cancelled; None: for a reason that is not the host's."""
        ...
