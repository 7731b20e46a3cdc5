"""The request of a model call: its settings in the present turn, and what its events show.

Called by the agent's `completion`.
"""

from typing import Any

from factorial.agent.lifecycle.progress import metadata
from factorial.agent.lifecycle.steps import current_frame
from factorial.agent.lifecycle.window import Fitted
from factorial.context import ExecutionContext
from factorial.events import AgentEvent, EventType
from factorial.models import ResolvedModelSettings
from factorial.tools import FINAL_OUTPUT

__all__ = ["publish_trimmed", "settings_for_turn", "with_text"]


def settings_for_turn(
    settings: ResolvedModelSettings, *, has_tools: bool, must_call_tool: bool, is_last: bool
) -> ResolvedModelSettings:
    """`settings`, with a tool choice that fits the turn: none without tools, and an answer in the last one."""
    choice = settings.tool_choice
    if not has_tools:
        return ResolvedModelSettings(settings.temperature, settings.max_completion_tokens)
    if is_last:
        final: dict[str, Any] = {"type": "function", "function": {"name": FINAL_OUTPUT}}
        choice = final if must_call_tool else "none"
    elif choice is None and must_call_tool:
        choice = "required"
    return ResolvedModelSettings(
        settings.temperature, settings.max_completion_tokens, choice, settings.parallel_tool_calls
    )


async def publish_trimmed(limit: int, fitted: Fitted) -> None:
    """Publish that the request leaves out messages, to stay within `limit` tokens."""
    execution_ctx, frame = ExecutionContext.get(), current_frame()
    if execution_ctx is None or frame is None:
        return
    turn = frame.state.context.turn
    await execution_ctx.events.publish_event(
        AgentEvent(
            event_type=EventType.CONTEXT_WINDOW_TRIMMED,
            task_id=execution_ctx.task_id,
            owner_id=execution_ctx.owner_id,
            agent_name=execution_ctx.agent_name,
            metadata=metadata(execution_ctx, turn),
            turn=turn,
            data={
                "limit": limit,
                "tokens": fitted.tokens,
                "messages_left_out": fitted.left_out,
                "messages_sent": len(fitted.messages),
            },
        )
    )


def with_text(chunk: dict[str, Any]) -> dict[str, Any]:
    """A chunk as its event shows it: what the provider sent, and as `text` what it adds to the answer."""
    deltas = [choice.get("delta") or {} for choice in chunk.get("choices") or ()]
    return {**chunk, "text": "".join(part for delta in deltas if isinstance(part := delta.get("content"), str))}
