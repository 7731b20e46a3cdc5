"""A tool call, from the model's text to the result that the model sees.

A mistake of the model (an unknown tool, invalid JSON, an invalid argument) and an ordinary exception of the tool become
results that say what went wrong, and the run continues. `FatalAgentError`, `RetryableError` and cancellation pass
through to the run's host.

Called by the agent's `tool_action`.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from factorial._core.json import dump_json
from factorial._core.text import shorten
from factorial.context import AgentContext, ExecutionContext
from factorial.errors import FatalAgentError, RetryableError
from factorial.telemetry.task_log import task_fields
from factorial.tools.function_tool import FunctionTool
from factorial.tools.output import FunctionToolActionResult, failure, shape

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageToolCall

__all__ = ["call_tool"]

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
        try:
            arguments = tool.parameters.validate(text if text.strip() else "{}")
        except ValidationError as invalid:
            return failure(tool_call.id, _explain(tool, invalid))
    else:
        arguments = dict.fromkeys(tool.parameters.names, text)
    if tool.is_final_output:
        output = arguments["output"]
        return shape(tool_call.id, (dump_json(output).decode(), output))
    arguments |= tool.parameters.inject(agent_ctx, execution_ctx)
    try:
        value = await _run(tool, arguments)
    except (FatalAgentError, RetryableError):
        raise
    # The model sees whatever the user's code raises. Including SystemExit: a tool that calls sys.exit() must not end
    # the worker process.
    except (Exception, SystemExit) as error:
        _logger.info("tool %s failed", tool.name, exc_info=error, extra=task_fields())
        return failure(tool_call.id, f"{type(error).__name__}: {error}")
    return shape(tool_call.id, value) if tool.deferral is None else tool.deferral.shape(tool.name, tool_call.id, value)


async def _run(tool: FunctionTool, arguments: dict[str, Any]) -> Any:
    """The function's value. Plain functions run in a thread, with the caller's context variables."""
    if tool.is_async:
        return await tool.function(**arguments)
    context = copy_context()
    thread = asyncio.get_running_loop().run_in_executor(_threads(), context.run, _guarded, tool.function, arguments)
    value = await thread
    return await value if inspect.isawaitable(value) else value


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads for tools only. In the event loop's default pool, tools that hang would block lookups of host names."""
    return ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="tool")


def _guarded(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    try:
        return function(**arguments)
    except StopIteration as stop:  # a future cannot hold it: the caller would wait forever
        raise RuntimeError("the tool raised StopIteration") from stop


def _explain(tool: FunctionTool, invalid: ValidationError) -> str:
    """One line that names each invalid argument, what it should be, and what was sent."""
    errors = invalid.errors(include_url=False, include_context=False)
    if errors[0]["type"] == "json_invalid":
        reason = errors[0]["msg"].removeprefix("Invalid JSON: ")
        return f"the arguments of {tool.name!r} are not valid JSON ({reason}): send one JSON object"
    complaints = "; ".join(_complaint(error) for error in errors[:10])
    return f"the arguments of {tool.name!r} are not valid: {complaints}"


def _complaint(error: Any) -> str:
    field = ".".join(str(part) for part in error["loc"]) or "the whole"
    if error["type"] == "missing":
        return f"{field!r} is missing"
    if error["type"] == "extra_forbidden":
        return f"{field!r} is not a parameter"
    return f"{field!r}: {error['msg']} (you sent {shorten(repr(error['input']), 100)})"
