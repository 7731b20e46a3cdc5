"""What a turn returns, and what a run returns."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic

from factorial.context import ContextType

__all__ = ["RunCompletion", "TurnCompletion"]


@dataclass(slots=True)
class TurnCompletion(Generic[ContextType]):
    """The end of a turn. With `is_done` the run ends, and `output` is its result."""

    is_done: bool
    context: ContextType
    output: Any = None
    tool_call_results: list[tuple[Any, Any]] = field(default_factory=list)
    """Each tool call of the turn with its `FunctionToolActionResult`."""
    pending_tool_call_ids: list[str] = field(default_factory=list)
    """Calls whose results are delivered later. The run is parked until these and the child tasks have arrived. An
    overridden `run_turn` may name ids of its own, without a call of the model: each result is then appended to the
    messages, as a tool message with the id."""
    pending_child_task_ids: list[str] = field(default_factory=list)
    """Child tasks that the run awaits. If an overridden `run_turn` names tasks that no call awaits, their ends are
    passed to `process_child_task_results`."""
    finish_reason: str | None = None
    """Why the model's answer ended: `stop`, `tool_calls`, `length`, `content_filter` or `refusal`; None if no model was
    asked."""


@dataclass(slots=True)
class RunCompletion(Generic[ContextType]):
    """The end of a run: what `run_inline` returns, and what `on_run_end` gets."""

    output: Any
    context: ContextType
    started_at: datetime
    finished_at: datetime
    error: BaseException | None = None
    """What ended the run as failed, for `on_run_end`; an inline run raises it."""
    finish_reason: str | None = None
    """Why the model's last answer ended. `length`, `content_filter` and `refusal` are those of an incomplete answer,
    which the agent takes with `incomplete_answers="mark"`."""

    @property
    def duration(self) -> float:
        """Seconds that the run took."""
        return (self.finished_at - self.started_at).total_seconds()

    @property
    def succeeded(self) -> bool:
        """Whether the run has completed."""
        return self.error is None
