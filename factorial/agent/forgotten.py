"""Methods that 0.1.x called on an agent and nobody calls now. Who overrides one is told so when the class is made."""

import logging

__all__ = ["warn_of_forgotten_hooks"]

logger = logging.getLogger(__name__)

_INSTEAD = {
    "_prepare_instructions": "override resolve_instructions",
    "_extract_output": "override run_turn",
    "_is_done": "override run_turn",
    "execute_tools": "override tool_action, which is called for each tool call",
    "extract_tool_call_result": "override tool_action, and return what the model is to see",
    "format_tool_result": "override tool_action, and return what the model is to see",
    "format_child_task_result": "give the agent on_pending_tool_results=...",
    "process_child_task_results": "give the agent on_pending_tool_results=...",
    "process_deferred_tool_results": "give the agent on_pending_tool_results=...",
    "steer": "steering messages enter the conversation by themselves; override prepare_messages to change them",
    "cancel": "give the agent on_run_cancelled=...",
}


def warn_of_forgotten_hooks(agent_class: type) -> None:
    """Log a warning for each such method that `agent_class` defines."""
    for name in _INSTEAD.keys() & vars(agent_class).keys():
        logger.warning(
            "%s.%s: nfactorial 0.1.x called this method, and Factorial does not: %s",
            agent_class.__name__,
            name,
            _INSTEAD[name],
        )
