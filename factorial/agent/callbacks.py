"""The lifecycle callbacks of an agent: functions of the user's that are called when something happens. Plain or async:

    on_run_start             (agent_ctx, execution_ctx)                    before the first turn
    on_turn_start            (agent_ctx, execution_ctx)                    before each try of a turn
    on_turn_end              (agent_ctx, execution_ctx, TurnCompletion)    after a turn
    on_pending_tool_call     (agent_ctx, execution_ctx, tool_call)         a deferred tool has returned
    on_pending_tool_results  (agent_ctx, execution_ctx, [(id, result)])    all that the turn awaited has arrived
    on_run_end               (agent_ctx, execution_ctx, RunCompletion)     the run has completed, or failed
    on_run_cancelled         (agent_ctx, execution_ctx)                    the run was cancelled

What a callback changes in the context is kept, except for the last two. An exception that it raises, or `SystemExit`,
is logged, and the run goes on. `FatalAgentError` ends the run as failed. Anything else, such as a `CancelledError`
though nobody cancelled the run, fails the attempt at the turn.

A callback may be called again if its process dies before the next step is recorded; `on_run_start` is a step itself,
and is not called again once it is recorded. The last two are called after the end was stored, and are not called if the
process dies just then. A task that no process holds when it is cancelled ends at once, and `Orchestrator.cancel_task`
calls `on_run_cancelled` if the agent has a runner in that orchestrator. For its children, and for a task that ends with
`crash_loop`, no callback is called: their events are published.

Called by `activation.py` and `calls.py`.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any

from factorial._core.boundary import Raised, attempt, ordinary
from factorial._core.signature import can_take
from factorial.errors import ConfigError, FatalAgentError

__all__ = ["Callback", "call_back", "checked_callback"]

Callback = Callable[..., Awaitable[None] | None] | None

_ARGUMENTS = {
    "on_run_start": ("agent_ctx", "execution_ctx"),
    "on_turn_start": ("agent_ctx", "execution_ctx"),
    "on_turn_end": ("agent_ctx", "execution_ctx", "completion"),
    "on_pending_tool_call": ("agent_ctx", "execution_ctx", "tool_call"),
    "on_pending_tool_results": ("agent_ctx", "execution_ctx", "results"),
    "on_run_end": ("agent_ctx", "execution_ctx", "completion"),
    "on_run_cancelled": ("agent_ctx", "execution_ctx"),
}

_logger = logging.getLogger(__name__)


def checked_callback(agent: str, name: str, callback: Callback) -> Callback:
    """`callback`, if it can be called with the arguments of the callback of this name. Raises `ConfigError`."""
    arguments = _ARGUMENTS[name]
    if callback is not None and not can_take(callback, *arguments):
        raise ConfigError(
            f"agent {agent!r}: {name}={callback!r} must be a function of {len(arguments)} arguments "
            f"({', '.join(arguments)}): see factorial.agent.callbacks"
        )
    return callback


async def call_back(callback: Callback, *arguments: Any, context: Context | None = None) -> None:
    """Call `callback`, if there is one, in `context`. An exception that it raises is logged.

    Raises `FatalAgentError` if it does, and `RetryableError` if it raises what is neither an `Exception` nor
    `SystemExit`.
    """
    if callback is None:
        return

    async def called() -> None:
        answer = callback(*arguments)
        if inspect.isawaitable(answer):
            await answer

    result = await attempt(called, context)
    if not isinstance(result, Raised):
        return
    name = getattr(callback, "__name__", type(callback).__name__)
    error = ordinary(f"callback {name}", result.error)
    if isinstance(error, FatalAgentError) or (error is not result.error and not isinstance(result.error, SystemExit)):
        raise error
    task_id = getattr(arguments[1], "task_id", "")
    _logger.warning("task %s: callback %s failed", task_id, name, exc_info=result.error)
