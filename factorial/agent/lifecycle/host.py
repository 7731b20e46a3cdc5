"""What a run needs from the place where it lives: `InlineHost` in `inline.py`, `DurableHost` in `actors/`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from factorial.agent.lifecycle.definition import Spawnable
from factorial.agent.lifecycle.outcome import Cancel, Outcome, Release
from factorial.context import AgentContext
from factorial.events import BaseEvent

__all__ = ["Child", "Host", "Recorded", "SpawnedBatch"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A finished step as the journal keeps it."""

    result: bytes
    message: bytes = b""
    """The part that goes into the conversation."""
    entries: Mapping[str, bytes] = field(default_factory=dict)
    """What guards add, by name."""
    altered: bool = False
    """The result could not be stored as it was: the turn goes on with what is stored."""


@dataclass(frozen=True, slots=True)
class Child:
    """A task that a run spawns: of which agent, over which context."""

    task_id: str
    agent: Spawnable
    context: AgentContext


@dataclass(frozen=True, slots=True)
class SpawnedBatch:
    """What a run spawns as one batch."""

    batch_id: str
    seed: str
    """What the ids of its tasks follow from: `task.batch_task_ids`."""
    max_turns: int
    """Turns of a task that count for progress; 0: progress counts tasks."""


class Host(Protocol):
    """Keeps what a run has done, and decides with it what comes next."""

    async def publish_event(self, event: BaseEvent) -> None:
        """Publish `event` in order with the run's other events."""
        ...

    async def publish_live(self, event: BaseEvent) -> None:
        """Publish `event` to present subscribers only; it is not stored."""
        ...

    def recall(self, key: str, context: AgentContext | None, *, with_siblings: bool) -> Recorded | None:
        """The step `key` of this turn, if it was recorded before; it is not taken again then.

        What had changed in the context when the step was recorded is restored in `context`, if that is given. With
        `with_siblings`, it is what had changed by the latest recorded step.
        """
        ...

    async def record(self, key: str, step: Recorded, context: AgentContext | None, *, urgent: bool) -> None:
        """Record a finished step, and with it what has changed in `context`, if that is given.

        `urgent`: return when the record is stored. Otherwise the turn's end follows at once, and the record may be
        stored together with that.
        """
        ...

    async def boundary(self) -> None:
        """A step boundary, at which the run may be released: the model has answered, and no tool runs yet."""
        ...

    async def expect(self, key: str, step: str, tool: str) -> bool:
        """From now on the result `key` of `step`, a call of `tool`, may be delivered from outside.

        False, and nothing is expected, if another step of the turn expects a result of this name. Raises
        `FatalAgentError` if nobody could deliver it here.
        """
        ...

    async def spawn(self, batch: SpawnedBatch | None, children: Sequence[Child]) -> None:
        """Begin these tasks, as one batch if it is given. A task that was begun before is left as it is."""
        ...

    async def settle(self, outcome: Outcome, context: AgentContext, events: Sequence[BaseEvent]) -> Outcome | None:
        """Carry out what the turn leads to, and return what was carried out; None if another process holds the task.

        `events` are published if `outcome` is carried out as asked. Raises `ContextError` if the context cannot be
        stored.
        """
        ...

    def interruption(self) -> Cancel | Release | None:
        """Why the run's asyncio task was cancelled; None for a reason that is not the host's."""
        ...
