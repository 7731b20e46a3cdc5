"""Progress events: `progress_update_{operation}_{started|completed|failed}` around whatever an agent does.

`data` holds `args`, `kwargs` and `context` (checklist E05), and `result` once there is one. All of it is bounded: the
context is a summary, so that an event never grows with the conversation.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from factorial.agent.failure import describe
from factorial.context import AgentContext, ExecutionContext
from factorial.events import AgentEvent, bounded
from factorial.utils import shorten

__all__ = ["metadata", "progress", "summary"]

T = TypeVar("T")


def summary(context: AgentContext) -> dict[str, Any]:
    """What an event tells of a context."""
    return {"query": shorten(context.query, 200), "turn": context.turn, "messages": len(context.messages)}


def metadata(execution: ExecutionContext, turn: int) -> dict[str, Any]:
    """Where and when something happened: the turn, the attempt at the task, the process."""
    return {"turn": turn, "attempt": execution.pickups, "process": execution.process}


async def progress(
    operation: str,
    execution: ExecutionContext,
    context: AgentContext,
    call: Callable[[], Awaitable[T]],
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    show: Callable[[T], Any] | None = None,
) -> T:
    """Await `call()`, with an event before and one after. `show` makes of the result what the event tells of it."""
    about = {"args": bounded(list(args)), "kwargs": bounded(dict(kwargs or {})), "context": summary(context)}

    async def tell(status: str, error: str | None = None, **more: Any) -> None:
        await execution.events.publish_event(
            AgentEvent(
                event_type=f"progress_update_{operation}_{status}",
                task_id=execution.task_id,
                owner_id=execution.owner_id,
                agent_name=execution.agent_name,
                turn=context.turn,
                metadata=metadata(execution, context.turn),
                data={**about, **more},
                error=error,
            )
        )

    await tell("started")
    try:
        result = await call()
    except Exception as error:  # whatever the agent raises is told of, and goes on its way
        await tell("failed", error=describe(error))
        raise
    await tell("completed", **({"result": bounded(show(result))} if show else {}))
    return result
