"""What a turn returns, and what a run returns."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

from factorial.context import AgentContext

__all__ = ["RunCompletion", "TurnCompletion"]

ContextType = TypeVar("ContextType", bound=AgentContext)


@dataclass(slots=True)
class TurnCompletion(Generic[ContextType]):
    """The end of a turn. With `is_done` the run ends, and `output` is its result (checklist A10)."""

    is_done: bool
    context: ContextType
    output: Any = None
    tool_call_results: list[tuple[Any, Any]] = field(default_factory=list)
    """Each tool call of the turn with its `FunctionToolActionResult`."""


@dataclass(slots=True)
class RunCompletion(Generic[ContextType]):
    """The end of an inline run (checklist O13)."""

    output: Any
    context: ContextType
    started_at: datetime
    finished_at: datetime

    @property
    def duration(self) -> float:
        """Seconds that the run took."""
        return (self.finished_at - self.started_at).total_seconds()
