"""The state of a run in its activation: what its steps and its turns share."""

from dataclasses import dataclass
from datetime import datetime
from typing import Generic

from factorial.agent.lifecycle.definition import AgentDefinition
from factorial.agent.lifecycle.host import Host
from factorial.context import ContextType, ExecutionContext

__all__ = ["RunState"]


@dataclass(slots=True)
class RunState(Generic[ContextType]):
    """One run, on one host."""

    agent: AgentDefinition[ContextType]
    context: ContextType
    execution_ctx: ExecutionContext
    host: Host
    started_at: datetime
    """When the task was claimed for the first time."""
    deferred_for: float | None = None
    """Seconds since the task was deferred first, without a finished step in between; None if it cannot be deferred."""
    turn: int = 0
    """The turn that is being taken, or was taken last. `context.turn` counts finished turns."""
    has_loose_pieces: bool = False
    """Pieces of an answer may have been published that is not finished: of a broken attempt, here or elsewhere."""
