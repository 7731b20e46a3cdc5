"""The lifecycle callbacks of an agent: the user's functions that are told what happens (checklist T04).
Plain or async:

    on_run_start             (agent_ctx, execution_ctx)                    before the first turn
    on_turn_start            (agent_ctx, execution_ctx)                    before each try of a turn
    on_turn_end              (agent_ctx, execution_ctx, TurnCompletion)    after it
    on_pending_tool_call     (agent_ctx, execution_ctx, tool_call)         a deferred tool has begun its work
    on_pending_tool_results  (agent_ctx, execution_ctx, [(id, result)])    all that the turn waited for is there
    on_run_end               (agent_ctx, execution_ctx, RunCompletion)     the run has completed, or failed
    on_run_cancelled         (agent_ctx, execution_ctx)                    the run was cancelled

What a callback changes in the context is kept, but for the last two. What it raises is logged, and the run goes on;
`FatalAgentError` ends it as failed. Like every step, a callback may be called again if its process dies just then; the
last two come after the end was stored, and are not called if the process dies just then: the events tell of each end.
A run that nobody executes when it is cancelled ends at once, and `Orchestrator.cancel_task` calls `on_run_cancelled`,
if the agent has a runner in that orchestrator; of its children, and of a run that is given up for the deaths of its
processes, only the events tell.

Called by `run.py` and `steps.py`.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any

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

logger = logging.getLogger(__name__)


def checked_callback(agent: str, name: str, callback: Callback) -> Callback:
    """`callback`, if it can be called with what the callback of this name is told. Raises `ConfigError`."""
    arguments = _ARGUMENTS[name]
    if callback is not None and not can_take(callback, *arguments):
        raise ConfigError(
            f"agent {agent!r}: {name}={callback!r} must be a function of {len(arguments)} arguments "
            f"({', '.join(arguments)}): see factorial.agent.callbacks"
        )
    return callback


async def call_back(callback: Callback, *arguments: Any) -> None:
    """Call `callback`, if there is one. Raises `FatalAgentError` if it does; any other error is logged."""
    if callback is None:
        return
    try:
        answer = callback(*arguments)
        if inspect.isawaitable(answer):
            await answer
    except FatalAgentError:
        raise
    except (Exception, SystemExit) as error:  # the boundary to the user's code: it is told, and not asked
        task_id = getattr(arguments[1], "task_id", "")
        name = getattr(callback, "__name__", type(callback).__name__)
        logger.warning("task %s: callback %s failed", task_id, name, exc_info=error)
