"""A tool call, from the model's text to the result that the model sees.

A mistake of the model (an unknown tool, invalid JSON, an invalid argument) and whatever the tool raises become results
that say what went wrong, and the run continues: also `SystemExit`, and a `CancelledError` if nobody cancelled the run.
Only `FatalAgentError` and `RetryableError` pass through to the run's host, alone or in an exception group.

Called by the agent's `tool_action`.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from factorial._core.boundary import Raised, attempt, found_in, result_of_call
from factorial._core.json import dump_json, load_strict_json
from factorial._core.text import error_text, safe_repr
from factorial.context import AgentContext, ExecutionContext
from factorial.errors import FatalAgentError, RetryableError
from factorial.telemetry.task_log import task_fields
from factorial.tools.deferred import refuse_batch
from factorial.tools.function_tool import FunctionTool
from factorial.tools.output import FunctionToolActionResult, failure, shape

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageToolCall

__all__ = ["call_tool", "in_thread"]

_logger = logging.getLogger(__name__)

_MOST_THREADS = 64
"""How many plain `def` tools one process executes at once. Further calls wait for a thread."""


async def call_tool(
    tool: FunctionTool | None,
    tool_call: "ChatCompletionMessageToolCall",
    agent_ctx: AgentContext,
    execution_ctx: ExecutionContext | None,
    *,
    parse_args: bool = True,
    known: Iterable[str] = (),
) -> FunctionToolActionResult:
    """Call `tool` with the arguments in `tool_call`.

    `tool` is None if no tool has the name that the model called; `known` are the names that exist. With
    `parse_args=False` the tool gets the arguments as raw text, in its only parameter.

    Raises `FatalAgentError` and `RetryableError` if the tool does. Every other failure is in the result.
    """
    called = tool_call.function
    if tool is None:
        names = ", ".join(known)
        offer = f"the tools are: {names}" if names else "there are no tools: answer in text"
        return failure(tool_call.id, f"there is no tool {called.name!r}; {offer}")
    text = called.arguments or ""
    if parse_args or tool.is_final_output:
        text = text if text.strip() else "{}"
        try:
            load_strict_json(text)  # pydantic would take NaN
            arguments = tool.parameters.validate(text)
        except ValidationError as invalid:
            return failure(tool_call.id, _explain(tool, invalid))
        except ValueError as broken:
            reason = f"the arguments of {tool.name!r} are not valid JSON ({broken}): send one JSON object"
            return failure(tool_call.id, reason)
    else:
        arguments = dict.fromkeys(tool.parameters.names, text)
    if tool.is_final_output:
        output = arguments["output"]
        return shape(tool_call.id, (dump_json(output).decode(), output))
    arguments |= tool.parameters.inject(agent_ctx, execution_ctx)
    value = await _run(tool, arguments)
    if isinstance(value, Raised):
        if for_the_host := found_in(value.error, FatalAgentError, RetryableError):
            raise for_the_host
        _logger.info("tool %s failed", tool.name, exc_info=value.error, extra=task_fields())
        return failure(tool_call.id, error_text(value.error))
    if tool.deferral is not None:
        return tool.deferral.shape(tool.name, tool_call.id, value)
    return refuse_batch(tool.name, tool_call.id, value) or shape(tool_call.id, value)


async def _run(tool: FunctionTool, arguments: dict[str, Any]) -> Any:
    """What the function returns or raises. Plain functions run in a thread, with the caller's context variables."""
    call = partial(tool.function, **arguments)
    if tool.is_async:
        return await attempt(call)
    value = await in_thread(call)
    return await attempt(lambda: value) if inspect.isawaitable(value) else value


async def in_thread(call: Callable[[], Any]) -> Any:
    """What `call` returns or raises (`Raised`), made in a thread, with the caller's context variables."""
    context = copy_context()
    return await asyncio.get_running_loop().run_in_executor(_threads(), context.run, result_of_call, call)


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads for tools and steps only. If they hang in the default pool, they block look-ups of host names."""
    return ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="tool")


def _explain(tool: FunctionTool, invalid: ValidationError) -> str:
    """One line that names each invalid argument, what it should be, and what was sent."""
    errors = invalid.errors(include_url=False, include_context=False)
    complaints = "; ".join(_complaint(error) for error in errors[:10])
    return f"the arguments of {tool.name!r} are not valid: {complaints}"


def _complaint(error: Any) -> str:
    field = ".".join(str(part) for part in error["loc"]) or "the whole"
    if error["type"] == "missing":
        return f"{field!r} is missing"
    if error["type"] == "extra_forbidden":
        return f"{field!r} is not a parameter"
    return f"{field!r}: {error['msg']} (you sent {safe_repr(error['input'], 100)})"
