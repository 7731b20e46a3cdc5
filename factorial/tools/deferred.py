"""Tools whose result is not what the function returns (checklist T01, T03).

    @deferred_result(timeout=3600)              the result comes from outside: orchestrator.complete_deferred_tool
    def ask_the_manager(question: str, execution_ctx: ExecutionContext) -> None: ...

    @forking_tool(timeout=600)                  the result is what the spawned tasks come to
    async def research(topics: list[str], execution_ctx: ExecutionContext) -> Batch: ...

The function begins the work and returns at once. The task is parked then, without a worker, until all that its turn
waits for is there. Called by `function_tool` (what a function is marked as) and by `call` (what it returned).
"""

import inspect
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from factorial._core.text import printable_text, shorten
from factorial.context import Batch
from factorial.errors import ConfigError, InvalidTaskIdError
from factorial.task import check_task_id
from factorial.telemetry.story import fields_here
from factorial.tools.output import FunctionToolActionResult, failure
from factorial.tools.schema import where

__all__ = ["Deferral", "deferral_of", "deferred_result", "forking_tool"]

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "factorial_deferral"
_CHILD = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Deferral:
    """What a tool's result waits for, and for how many seconds."""

    waits_for: Literal["result", "children"]
    timeout: float

    def shape(self, tool: str, tool_call_id: str, value: Any) -> FunctionToolActionResult:
        """The result so far, for what the function of the tool of this name returned."""
        if self.waits_for == "result":
            return FunctionToolActionResult(
                tool_call_id=tool_call_id, output_str="", output_data=value, pending_result=True, timeout=self.timeout
            )
        shown, children = value if isinstance(value, tuple) and _is_told(value) else ("", value)
        try:
            task_ids = _task_ids(children)
        except InvalidTaskIdError:
            mistake = (
                f"the forking tool {tool!r} returned {shorten(repr(children), 200)}: return the id or the batch that "
                "spawn_child_task(s) gave, a list of them, or a pair of a text for the model and one of these"
            )
            logger.warning("%s", mistake, extra=fields_here())
            return failure(tool_call_id, mistake)
        return FunctionToolActionResult(
            tool_call_id=tool_call_id,
            output_str=printable_text(shown) if task_ids else shown or "[]",
            output_data=task_ids,
            pending_child_task_ids=task_ids,
            timeout=self.timeout,
        )


def deferred_result(timeout: float) -> Callable[[F], F]:
    """Mark a tool whose result comes from outside, by `orchestrator.complete_deferred_tool` (checklist T01).

    The function may hand `execution_ctx.task_id` and `execution_ctx.tool_call_id` to whoever will give the result. A
    result that comes before the task has parked is kept. After `timeout` seconds without one, the model is told so.
    What the function raises is an ordinary error of the tool. Raises `ConfigError`.
    """
    return _marking("deferred_result", Deferral("result", timeout))


def forking_tool(timeout: float) -> Callable[[F], F]:
    """Mark a tool that spawns tasks and waits for all of them (checklist T03).

    The function returns what `execution_ctx.spawn_child_task(s)` gave, alone or in a list, or a pair of a text for the
    model and these. The model sees the text and, as a JSON list, each task's id, status, and output or error. Tasks
    that have not ended after `timeout` seconds are cancelled, and shown as expired. Raises `ConfigError`.
    """
    return _marking("forking_tool", Deferral("children", timeout))


def deferral_of(function: Any) -> Deferral | None:
    """What a function's result waits for, through wrappers and partials; None: the result is what it returns."""
    while function is not None:
        if deferral := getattr(function, _MARK, None):
            return cast(Deferral, deferral)
        function = getattr(function, "__wrapped__", None) or getattr(function, "func", None)
    return None


def _marking(decorator: str, deferral: Deferral) -> Callable[[F], F]:
    timeout: object = deferral.timeout
    if callable(timeout):
        raise ConfigError(f"{decorator}: write @{decorator}(timeout=60), with parentheses")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise ConfigError(f"{decorator}(timeout={timeout!r}): use seconds above 0, as in {decorator}(timeout=60)")

    def mark(function: F) -> F:
        given: object = function
        if inspect.isclass(function) or not callable(given) or not hasattr(given, "__dict__"):
            raise ConfigError(f"{decorator} marks functions, and {function!r} is none")
        if hasattr(function, "parameters"):
            raise ConfigError(f"put {decorator} below function_tool, so that it marks the function itself")
        earlier = deferral_of(function)
        if earlier is not None and earlier.waits_for != deferral.waits_for:
            raise ConfigError(
                f"{where(function)} has both deferred_result and forking_tool: a tool waits for children, or for a "
                "result from outside; keep one"
            )
        setattr(function, _MARK, deferral)
        return function

    return mark


def _is_told(value: tuple[Any, ...]) -> bool:
    return len(value) == 2 and isinstance(value[0], str) and not _CHILD.fullmatch(value[0])


def _task_ids(children: Any) -> list[str]:
    if isinstance(children, Batch):
        return list(children.task_ids)
    if isinstance(children, list | tuple):
        return list(dict.fromkeys(task_id for child in children for task_id in _task_ids(child)))
    return [check_task_id(children)]
