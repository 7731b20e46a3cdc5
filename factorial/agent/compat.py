"""What agents that were written for nfactorial 0.1.x may override, and how it is treated here."""

import inspect
import logging
from collections.abc import Callable
from typing import Any

from factorial.context import AgentContext

__all__ = ["own_conversation", "warn_of_dropped_hooks"]

_logger = logging.getLogger(__name__)

_INSTEAD = {
    "_prepare_instructions": "override resolve_instructions",
    "_extract_output": "override run_turn",
    "_is_done": "override run_turn",
    "execute_tools": "override tool_action, which is called for each tool call",
    "extract_tool_call_result": "override tool_action, and return what the model is to see",
    "format_tool_result": "override tool_action, and return what the model is to see",
    "format_child_task_result": "override process_child_task_results",
    "process_deferred_tool_results": "give the agent on_pending_tool_results=...",
    "steer": "steering messages enter the conversation by themselves; override prepare_messages to change them",
    "cancel": "give the agent on_run_cancelled=...",
}


def warn_of_dropped_hooks(agent_class: type) -> None:
    """Log a warning for each method of `agent_class` that 0.1.x called on an agent, and that is not called here."""
    for name in _INSTEAD.keys() & vars(agent_class).keys():
        _logger.warning(
            "%s.%s: nfactorial 0.1.x called this method, and Factorial does not: %s",
            agent_class.__name__,
            name,
            _INSTEAD[name],
        )


def own_conversation(
    prepare_messages: Callable[..., Any], prepared: list[dict[str, Any]], agent_ctx: AgentContext
) -> list[dict[str, Any]] | None:
    """The conversation that an overridden `prepare_messages` built in the first turn, if it built one; else None.

    In 0.1.x the method built the whole conversation in the first turn, instructions and query included, and returned
    `agent_ctx.messages` in later turns. What such a method builds is kept as the run's conversation. It is recognised
    by its code, which looks at the turn and does not ask the base class, and by its result: it adds the query, which is
    in the messages already, once more, or it uses none of the messages.
    """
    code = getattr(inspect.unwrap(prepare_messages), "__code__", None)
    if code is None or "turn" not in code.co_names or "prepare_messages" in code.co_names:
        return None
    own = [message for message in prepared if not any(message is known for known in agent_ctx.messages)]
    if len(own) == len(prepared):
        return prepared
    query = next((known for known in reversed(agent_ctx.messages) if known.get("content") == agent_ctx.query), None)
    if query is None or not any(agent_ctx.query in str(message.get("content")) for message in own):
        return None
    return [message for message in prepared if message is not query]
