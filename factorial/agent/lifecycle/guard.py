"""`Guard`: sees each step of a run before and after it is taken.

A guard may refuse a step (raise), delay it (await), replace it (set `call.result`), and add entries to its record. It
sees only steps that are taken: a step that is recalled from the journal was guarded when it was taken.

An agent lists its guards in `guards`. Their `before` is called in that order, their `after` in the opposite one.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from factorial.context import AgentContext, ExecutionContext

__all__ = ["Guard", "StepCall", "StepKind"]


class StepKind(StrEnum):
    """What kind of call a step is. Events about it are named `progress_update_<kind>_...`, but for callbacks."""

    COMPLETION = "completion"
    TOOL_ACTION = "tool_action"
    CALLBACK = "callback"
    STEP = "step"
    """A call that the agent's own code made a step, by `execution_ctx.step`."""


_MISSING: Any = object()


@dataclass(slots=True)
class StepCall:
    """One step while it is taken: what a guard sees of it."""

    key: str
    """The step's name in the journal: the same whenever the turn is taken again."""
    kind: StepKind
    about: Any
    """What is called: the tool call, or the name of the callback or of the user's step; None for a model call."""
    agent_ctx: AgentContext
    execution_ctx: ExecutionContext
    """As the called code sees it, with the step's `idempotency_key`."""
    result: Any = _MISSING
    """What the call returned. A guard that sets it in `before` replaces the call, which is not made then."""
    error: BaseException | None = None
    """What the call, or a guard, raised."""
    entries: dict[str, bytes] = field(default_factory=dict)
    """Entries to write with the step's record, by name: `usage` is stored in the journal as `usage:<key>`."""

    @property
    def has_result(self) -> bool:
        """Whether there is a result."""
        return self.result is not _MISSING


class Guard:
    """Extend it, and override one or both. What a guard raises is raised by the step."""

    async def before(self, call: StepCall) -> None:
        """Called when the step is about to be taken, before its first event."""

    async def after(self, call: StepCall) -> None:
        """Called when the step has a result or an error, before it is recorded."""
