"""A step: one call within a turn that is made once, however often the turn is taken.

Model calls (`model_call`), tool calls (`tool_call`), `on_run_start` and what the user's code makes a step by
`execution_ctx.step` (`user_step.py`) are steps. `steps.py` takes them.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from factorial.agent.lifecycle.guard import Guard, StepKind
from factorial.agent.lifecycle.host import Recorded
from factorial.agent.lifecycle.progress import Ending

__all__ = ["Step"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Generic[_T]):
    """What is to be done once."""

    name: str
    """The step's name in the journal. The n-th step of a name in a turn has the key `#n:<name>`."""
    kind: StepKind
    call: Callable[[], Awaitable[_T]]
    record: Callable[[_T], Recorded]
    recall: Callable[[Recorded], _T]
    about: Any = None
    """What is called, for guards."""
    returns: type[_T] | None = None
    """What the call must return, if an overridden method makes it."""
    args: Sequence[Any] = ()
    """The arguments of the call, as its events show them."""
    kwargs: Mapping[str, Any] | None = None
    shown: Mapping[str, Any] = field(default_factory=dict)
    """What its events show in addition."""
    ending: Callable[[_T], Ending | None] | None = None
    """What the last event about the call says of its result; None: the step has no events."""
    urgent: Callable[[_T], bool] = lambda _: True
    """Whether the record must be stored before the turn goes on. If not, the end of the turn follows at once."""
    keeps_context: bool = True
    """Whether the changes to the context are recorded, too."""
    guards: Sequence[Guard] = ()
    """Guards of this step alone. They come before those of the agent."""
    tool_call_id: str = ""
