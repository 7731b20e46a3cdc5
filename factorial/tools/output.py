"""What a tool gave back, in the shape that the model and the events see (checklist A14)."""

from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from typing import Any

from pydantic_core import to_json

from factorial._core.text import shorten

__all__ = ["FunctionToolAction", "FunctionToolActionResult", "failure", "shape"]

_LONGEST_ERROR = 2_000

FunctionToolAction = Callable[..., Any]
"""A function that a model can call, plain or async. It returns anything: see `shape`."""


@dataclass(slots=True, kw_only=True)
class FunctionToolActionResult:
    """The result of one tool call. A tool may return one; it needs no `tool_call_id` then."""

    output_str: str
    """What the model sees."""
    output_data: Any = None
    """What events and later code see: the tool's own value, or the second part of a `(shown, data)` tuple."""
    error: str | None = None
    """What went wrong, if something did. The model sees it too, in `output_str`. An exception is kept as its text."""
    tool_call_id: str = ""
    """Which call it answers."""
    tool_call: InitVar[Any] = None
    """The call itself, from which the id is taken."""
    pending_result: bool = False
    """The result comes from outside (checklist T01); there is none yet."""
    pending_child_task_ids: list[str] = field(default_factory=list)
    """The tasks whose ends are the result (T03)."""
    timeout: float = 0.0
    """Seconds after which a pending result is waited for no more; 0: never."""

    def __post_init__(self, tool_call: Any) -> None:
        if not self.tool_call_id and tool_call is not None:
            self.tool_call_id = tool_call.id
        error: object = self.error
        if isinstance(error, BaseException):
            self.error = f"{type(error).__name__}: {error}"

    @property
    def is_pending(self) -> bool:
        """Whether the result is still to come."""
        return self.pending_result or bool(self.pending_child_task_ids)


def shape(tool_call_id: str, value: Any) -> FunctionToolActionResult:
    """The result for what a tool returned.

    A string is shown as it is. Of a tuple of two that begins with a string, the model sees the string and events
    get the other part. Anything else is shown as JSON.
    """
    if isinstance(value, FunctionToolActionResult):
        value.tool_call_id = tool_call_id
        value.pending_result, value.pending_child_task_ids = False, []  # only a deferred tool is waited for
        return value
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        shown, data = value
    else:
        shown, data = value, value
    try:
        text = shown if isinstance(shown, str) else to_json(shown, inf_nan_mode="null").decode()
    except (ValueError, RecursionError) as unserialisable:  # pydantic's own error is a ValueError, and so is a circle's
        return failure(
            tool_call_id,
            f"the tool returned a value of type {type(shown).__name__}, which is no text and no JSON: {unserialisable}",
        )
    return FunctionToolActionResult(tool_call_id=tool_call_id, output_str=_encodable(text), output_data=data)


def failure(tool_call_id: str, error: str) -> FunctionToolActionResult:
    """The result of a call that failed: the model is told why, and may do better."""
    error = _encodable(shorten(error, _LONGEST_ERROR))
    return FunctionToolActionResult(tool_call_id=tool_call_id, output_str=f"Error: {error}", error=error)


def _encodable(text: str) -> str:
    """`text`, without what UTF-8 cannot hold (half of a surrogate pair, as in undecodable file names)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text
