"""Tools whose result is not the value that the function returns.

    @deferred_tool(timeout=3600)                the result is delivered by orchestrator.complete_deferred_tool
    def ask_the_manager(question: str, execution_ctx: ExecutionContext) -> None: ...

    @forking_tool(timeout=600)                  the result is the output of the spawned tasks
    async def research(topics: list[str], execution_ctx: ExecutionContext) -> Batch: ...

The function starts the work and returns at once. The task is then parked, without a worker, until all results of the
turn are there. The decorators return the function itself, with two marks: what its result awaits, and what kind of tool
it is. `function_tool` reads the marks; `call` makes the result of what the function returned.
"""

import inspect
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from factorial._core.text import printable_text, safe_repr
from factorial.context import Batch
from factorial.errors import ConfigError, InvalidTaskIdError
from factorial.task import check_task_id
from factorial.telemetry.task_log import task_fields
from factorial.tools.inspection import return_types, where
from factorial.tools.output import FunctionToolActionResult, failure
from factorial.tools.sub_tasks import sub_task_results

__all__ = [
    "Deferral", "IsEnabled", "ToolOptions", "check_awaits_its_batch", "deferral_of", "deferred_result",
    "deferred_tool", "forking_tool", "refuse_batch", "tool_options_of",
]  # fmt: skip

_logger = logging.getLogger(__name__)

_Function = TypeVar("_Function", bound=Callable[..., Any])
_DEFERRAL = "factorial_deferral"
_OPTIONS = "factorial_tool_options"
_TO_AWAIT = (
    "mark the tool with @forking_tool(timeout=...) to await the tasks, or have it return a text for the model, such as "
    "the batch's id, to go on without them"
)
_CHILD = re.compile(r"[0-9a-f]{32}")


IsEnabled = bool | Callable[[Any], bool]
"""Whether the model may call a tool: a constant, or a function of the agent's context."""


@dataclass(frozen=True, slots=True)
class ToolOptions:
    """How a function is presented to the model as a tool. None: as the function itself says."""

    name: str | None = None
    description: str | None = None
    strict_json_schema: bool = False
    is_enabled: IsEnabled = True


@dataclass(frozen=True, slots=True)
class Deferral:
    """What the result of a tool awaits."""

    awaits: Literal["result", "children"]
    timeout: float
    """Seconds."""

    def shape(self, tool: str, tool_call_id: str, value: Any) -> FunctionToolActionResult:
        """The pending result of a call of the tool named `tool`, whose function returned `value`."""
        if self.awaits == "result":
            return FunctionToolActionResult(
                tool_call_id=tool_call_id, output_str="", output_data=value, pending_result=True, timeout=self.timeout
            )
        shown, children = value if isinstance(value, tuple) and _begins_with_text(value) else ("", value)
        try:
            task_ids = _task_ids(children)
        except InvalidTaskIdError:
            mistake = (
                f"the forking tool {tool!r} returned {safe_repr(children)}: return the id or the batch that "
                "spawn_child_task(s) returned, a list of them, or a pair of a text for the model and one of these"
            )
            _logger.warning("%s", mistake, extra=task_fields())
            return failure(tool_call_id, mistake)
        return FunctionToolActionResult(
            tool_call_id=tool_call_id,
            output_str=printable_text(shown) if task_ids or shown else sub_task_results(()),
            output_data=task_ids,
            pending_child_task_ids=task_ids,
            timeout=self.timeout,
        )


def deferred_tool(
    timeout: float,
    *,
    name: str | None = None,
    description: str | None = None,
    strict_json_schema: bool = False,
    is_enabled: IsEnabled = True,
) -> Callable[[_Function], _Function]:
    """Mark a tool whose result is delivered from outside, by `orchestrator.complete_deferred_tool`.

    The function passes `execution_ctx.task_id` and `execution_ctx.tool_call_id` to the one who will deliver the result.
    A result that is delivered before the task is parked is kept. If none is delivered within `timeout` seconds, the
    model sees an error. What the function raises is an ordinary error of the tool. The other options are those of
    `function_tool`. Raises `ConfigError`.
    """
    options = ToolOptions(name, description, strict_json_schema, is_enabled)
    return _marking("deferred_tool", Deferral("result", timeout), options)


def deferred_result(timeout: float) -> Callable[[_Function], _Function]:
    """`deferred_tool(timeout)`, to be combined with `function_tool`, which then has the other options."""
    return _marking("deferred_result", Deferral("result", timeout))


def forking_tool(
    timeout: float,
    *,
    name: str | None = None,
    description: str | None = None,
    strict_json_schema: bool = False,
    is_enabled: IsEnabled = True,
) -> Callable[[_Function], _Function]:
    """Mark a tool that spawns child tasks and awaits all of them.

    The function returns what `execution_ctx.spawn_child_task(s)` returned, alone or in a list, or a pair of a text for
    the model and these. The model sees the text and `<sub_task_results>`, with the output or the error of each task:
    see `BaseAgent.process_child_task_results`. Tasks that have not ended within `timeout` seconds are cancelled. The
    other options are those of `function_tool`. Raises `ConfigError`.
    """
    options = ToolOptions(name, description, strict_json_schema, is_enabled)
    return _marking("forking_tool", Deferral("children", timeout), options)


def check_awaits_its_batch(function: Callable[..., Any], deferral: Deferral | None) -> None:
    """Raise `ConfigError` if the function says that it returns a batch, and nothing would await it."""
    if (deferral is None or deferral.awaits != "children") and Batch in return_types(function):
        raise ConfigError(f"{where(function)} returns a Batch: {_TO_AWAIT}")


def refuse_batch(tool: str, tool_call_id: str, value: Any) -> FunctionToolActionResult | None:
    """The failed result of a call of `tool` that returned a batch, which nothing awaits. None for any other value."""
    parts = value if isinstance(value, list | tuple) else (value,)
    if not any(isinstance(part, Batch) for part in parts):
        return None
    mistake = f"the tool {tool!r} returned a Batch, and nothing awaits its tasks: {_TO_AWAIT}"
    _logger.warning("%s", mistake, extra=task_fields())
    return failure(tool_call_id, mistake)


def deferral_of(function: Any) -> Deferral | None:
    """What the result of a function awaits, through wrappers and partials. None: the result is what it returns."""
    found: Deferral | None = _mark_of(function, _DEFERRAL)
    return found


def tool_options_of(function: Any) -> ToolOptions | None:
    """The options of the decorator that marked the function, through wrappers and partials."""
    found: ToolOptions | None = _mark_of(function, _OPTIONS)
    return found


def _mark_of(function: Any, mark: str) -> Any:
    while function is not None:
        if found := getattr(function, mark, None):
            return found
        function = getattr(function, "__wrapped__", None) or getattr(function, "func", None)
    return None


def _marking(
    decorator: str, deferral: Deferral, options: ToolOptions | None = None
) -> Callable[[_Function], _Function]:
    timeout: object = deferral.timeout
    if callable(timeout):
        raise ConfigError(f"{decorator}: write @{decorator}(timeout=60), with parentheses")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise ConfigError(f"{decorator}(timeout={timeout!r}): use seconds above 0, as in {decorator}(timeout=60)")

    def mark(function: _Function) -> _Function:
        given: object = function
        if inspect.isclass(function) or not callable(given) or not hasattr(given, "__dict__"):
            raise ConfigError(f"{decorator} marks functions, and {function!r} is not a function")
        if hasattr(function, "parameters"):
            raise ConfigError(f"put {decorator} below function_tool, so that it marks the function itself")
        earlier = deferral_of(function)
        if earlier is not None and earlier.awaits != deferral.awaits:
            raise ConfigError(
                f"{where(function)} is marked as deferred and as forking: a tool awaits children or a result from "
                "outside; keep one of the decorators"
            )
        setattr(function, _DEFERRAL, deferral)
        if options is not None:
            setattr(function, _OPTIONS, options)
        return function

    return mark


def _begins_with_text(value: tuple[Any, ...]) -> bool:
    """Whether `value` is a text for the model and the children, rather than a pair of children."""
    return len(value) == 2 and isinstance(value[0], str) and not _CHILD.fullmatch(value[0])


def _task_ids(children: Any) -> list[str]:
    if isinstance(children, Batch):
        return list(children.task_ids)
    if isinstance(children, list | tuple):
        return list(dict.fromkeys(task_id for child in children for task_id in _task_ids(child)))
    return [check_task_id(children)]
