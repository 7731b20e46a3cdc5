"""The ends of children as the parent's model reads them: what the agent's `process_child_task_results` makes of them.

Called by `activation.py` for the second half of a turn that was parked.
"""

import inspect
from typing import Any

from factorial.agent.completion import TurnCompletion
from factorial.agent.lifecycle.run_state import RunState
from factorial.agent.lifecycle.waiting import Arrival
from factorial.errors import FatalAgentError
from factorial.tools import FunctionToolActionResult

__all__ = ["add_ends", "answer_of"]


async def answer_of(state: RunState[Any], arrival: Arrival) -> FunctionToolActionResult:
    """What answers the call. For a call that awaited children, it is what the agent adds to the conversation."""
    if arrival.result is not None:
        return arrival.result
    before = len(state.context.messages)
    text = await _processed(state, arrival)
    added = state.context.messages[before:]
    del state.context.messages[before:]
    parts = [arrival.call.shown, *(message.get("content") for message in added), text]
    shown = "\n".join(part for part in parts if isinstance(part, str) and part)
    return FunctionToolActionResult(tool_call_id=arrival.call.tool_call_id, output_str=shown)


async def add_ends(state: RunState[Any], arrival: Arrival) -> None:
    """Add what the agent makes of children that its own `run_turn` awaits to the conversation."""
    text = await _processed(state, arrival)
    if text is not None:
        state.context.messages.append({"role": "user", "content": text})


async def _processed(state: RunState[Any], arrival: Arrival) -> str | None:
    """The text that the method returns, if it returns text."""
    agent = state.agent
    made: Any = agent.process_child_task_results(state.context, list(arrival.ends))
    if inspect.isawaitable(made):
        made = await made
    if isinstance(made, str):
        return made
    if not isinstance(made, TurnCompletion) or not isinstance(made.context, agent.context_class):
        raise FatalAgentError(
            f"{type(agent).__name__}.process_child_task_results returned {type(made).__name__}: return the text that "
            "the model is to read, or what the overridden method returns"
        )
    state.context = made.context
    return None
