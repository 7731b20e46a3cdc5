"""The result of a tool call, in the form that the model and the events see."""

from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from typing import Any

from pydantic_core import to_json

from factorial._core.sizes import MOST_BYTES, byte_length, too_large
from factorial._core.text import error_text, printable_text, shorten

__all__ = [
    "AgentToolAction", "AgentToolActionResult", "FunctionToolAction", "FunctionToolActionResult", "failure", "shape",
    "within_limit",
]  # fmt: skip

_LONGEST_ERROR = 2_000
"""Characters."""

FunctionToolAction = Callable[..., Any]
"""A function that a model can call, plain or async. It may return anything; `shape` makes the result of it."""


@dataclass(slots=True, kw_only=True)
class FunctionToolActionResult:
    """The result of one tool call. A tool may return one itself, without `tool_call_id`."""

    output_str: str
    """What the model sees."""
    output_data: Any = None
    """What events and later code see: the tool's own value, or the second part of a `(shown, data)` tuple."""
    error: str | None = None
    """The error's text if the call failed, else None. The model sees it too, in `output_str`. An exception that is
    passed here is replaced with its text."""
    tool_call_id: str = ""
    """The id of the call that this is the result of."""
    tool_call: InitVar[Any] = None
    """The call itself, from which the id is taken."""
    pending_result: bool = False
    """Whether the result will be delivered from outside (`deferred_result`)."""
    pending_child_task_ids: list[str] = field(default_factory=list)
    """The child tasks whose outputs will be the result (`forking_tool`)."""
    timeout: float = 0.0
    """Seconds after which a pending result expires; 0: never."""

    def __post_init__(self, tool_call: Any) -> None:
        if not self.tool_call_id and tool_call is not None:
            self.tool_call_id = tool_call.id
        error: object = self.error
        if isinstance(error, BaseException):
            self.error = error_text(error)

    @property
    def is_pending(self) -> bool:
        """Whether the result is not there yet."""
        return self.pending_result or bool(self.pending_child_task_ids)


AgentToolAction = FunctionToolAction
AgentToolActionResult = FunctionToolActionResult


def shape(tool_call_id: str, value: Any) -> FunctionToolActionResult:
    """The result for the value that a tool returned.

    The model sees a string as it is. If the value is a pair that begins with a string, the model sees the string, and
    events get the other part. Anything else is shown as JSON; the result is a failure if that is not possible.
    """
    if isinstance(value, FunctionToolActionResult):
        value.tool_call_id = tool_call_id
        value.pending_result, value.pending_child_task_ids = False, []  # only deferred tools may be pending
        return value
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        shown, data = value
    else:
        shown, data = value, value
    try:
        text = shown if isinstance(shown, str) else to_json(shown, inf_nan_mode="null").decode()
    except (ValueError, RecursionError) as unserialisable:  # ValueError: pydantic's error, or a circular reference
        return failure(
            tool_call_id,
            f"the tool returned a value of type {type(shown).__name__}, which is neither text nor JSON: "
            f"{unserialisable}",
        )
    return FunctionToolActionResult(tool_call_id=tool_call_id, output_str=printable_text(text), output_data=data)


def within_limit(result: FunctionToolActionResult) -> FunctionToolActionResult:
    """`result`, or a failed one if its text is too large."""
    size = byte_length(result.output_str)
    if size <= MOST_BYTES:
        return result
    return failure(result.tool_call_id, too_large("the text that the tool returned", size))


def failure(tool_call_id: str, error: str) -> FunctionToolActionResult:
    """The result of a failed call. The model sees the error, and may try something else."""
    error = printable_text(shorten(error, _LONGEST_ERROR))
    return FunctionToolActionResult(tool_call_id=tool_call_id, output_str=f"Error: {error}", error=error)
