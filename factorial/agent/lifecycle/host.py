"""What a run needs from the place where it lives. One lifecycle, two hosts: `inline.py`, and `actors/execution.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from factorial.context import AgentContext
from factorial.events import BaseEvent
from factorial.task import Cancel, Complete, Fail, NextStep, Release

if TYPE_CHECKING:
    from factorial.agent.agent import BaseAgent

__all__ = ["Answer", "Child", "Host", "Left", "Proceed", "RUN_START", "Recorded", "Resumed", "Retried", "Settlement"]


RUN_START = "run_start"
"""The step before the first turn: the callback of that name."""


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
class Resumed:
    """The run was to be parked, and all that it would wait for is there: finish the turn with it."""

    awaited: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Left:
    """The run has ended, is parked, or is somebody else's now. `ended`: it is this host that has ended it, so."""

    ended: Complete | Fail | Cancel | None = None


Answer = Proceed | Retried | Resumed | Left


@dataclass(frozen=True, slots=True)
class Child:
    """A run that another one spawns: of which agent, over which context."""

    task_id: str
    agent: "BaseAgent[Any]"
    context: AgentContext


class Host(Protocol):
    """Keeps what a run has done, and decides with it what comes next."""

    async def publish_event(self, event: BaseEvent) -> None:
        """Publish `event` in order with the run's other events."""
        ...

    async def publish_live(self, event: BaseEvent) -> None:
        """Publish `event` to those who listen now; it is not kept."""
        ...

    def recall(self, key: str) -> Recorded | None:
        """The step `key` of this turn, if it was finished before: it is not taken again.

        The first one that is recalled brings with it what the finished steps of the turn have changed in the context,
        all of them, since others may be executed beside it. (`RUN_START` comes before the turn, and brings its own.)
        What the turn changes before its first step is so not changed twice.
        """
        ...

    async def record(self, key: str, step: Recorded, *, urgent: bool) -> None:
        """Keep a finished step. `urgent`: return when it is kept; otherwise the turn's end follows at once, and it
        may be kept together with that."""
        ...

    async def expect(self, key: str, tool: str) -> None:
        """From now on, the result of the step `key`, a call of `tool`, may come from outside. Raises `FatalAgentError`
        if nobody could give it here."""
        ...

    async def spawn(self, batch_id: str, children: Sequence[Child]) -> None:
        """Begin these runs, of one batch if it has an id. One that was begun before is left as it is."""
        ...

    async def settle(self, settlement: Settlement) -> Answer:
        """Carry out what the turn came to. Raises `ContextError` if the context cannot be stored."""
        ...

    def interruption(self) -> Cancel | Release | None:
        """Why the run's asyncio task was cancelled; None: for a reason that is not the host's."""
        ...
