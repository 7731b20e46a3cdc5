"""Progress events: `progress_update_{operation}_{started|completed|failed}` around what an agent does.

`data` holds `args`, `kwargs` and `context`, and `result` when there is one. All of it is bounded: the context is a
summary, so an event never grows with the conversation.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from factorial._core.boundary import is_ending
from factorial._core.text import shorten
from factorial.agent.lifecycle.failure import describe
from factorial.context import AgentContext, ExecutionContext
from factorial.events import AgentEvent, bounded

__all__ = ["Ending", "Progress", "metadata", "showing", "summary"]

_T = TypeVar("_T")


def summary(context: AgentContext) -> dict[str, Any]:
    """What an event shows of a context."""
    return {"query": shorten(context.query, 200), "turn": context.turn, "messages": len(context.messages)}


def metadata(execution_ctx: ExecutionContext, turn: int) -> dict[str, Any]:
    """Where and when something happened: the turn, the attempt at it (from 1, as in the log), how many times the task
    was claimed (a step that is executed again after a crash has another number), and the process."""
    return {
        "turn": turn,
        "attempt": execution_ctx.retries + 1,
        "pickups": execution_ctx.pickups,
        "process": execution_ctx.process,
    }


class Progress:
    """The events about one operation of an agent. `args` and `kwargs` are what it was called with; `hidden` names what
    is left out: `args`, `kwargs`, `context`. Set `shown` to what the events show in addition."""

    def __init__(
        self,
        operation: str,
        execution_ctx: ExecutionContext,
        context: AgentContext,
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        hidden: Collection[str] = (),
    ) -> None:
        self._operation = operation
        self.shown: Mapping[str, Any] = {}
        self._execution_ctx = execution_ctx
        self._turn = context.turn
        about = {
            "args": bounded(list(args)) if args else [],
            "kwargs": bounded(dict(kwargs)) if kwargs else {},
            "context": summary(context),
        }
        self._about = {name: value for name, value in about.items() if name not in hidden} if hidden else about

    def event(self, status: str, error: str | None = None, **more: Any) -> AgentEvent:
        """The event that the operation has `started`, `completed` or `failed` now."""
        execution_ctx, turn = self._execution_ctx, self._turn
        return AgentEvent(
            event_type=f"progress_update_{self._operation}_{status}",
            task_id=execution_ctx.task_id,
            owner_id=execution_ctx.owner_id,
            agent_name=execution_ctx.agent_name,
            turn=turn,
            metadata=metadata(execution_ctx, turn),
            data={**self._about, **self.shown, **more},
            error=error,
        )

    async def publish(self, status: str, error: str | None = None, **more: Any) -> None:
        """Publish that event."""
        await self._execution_ctx.events.publish_event(self.event(status, error, **more))

    async def follow(self, call: Callable[[], Awaitable[_T]], ending: Callable[[_T], "Ending | None"]) -> _T:
        """Await `call()`, with an event before and one after. `ending` gives what the latter says of the result, or
        None if the result is still to come."""
        await self.publish("started")
        try:
            result = await call()
        except BaseException as error:  # the boundary to the user's code: the error is published, and raised again
            if not is_ending(error):
                await self.publish("failed", error=describe(error))
            raise
        if ended := ending(result):
            await self.publish_end(ended)
        return result

    async def publish_end(self, ending: "Ending") -> None:
        """Publish how the operation has ended."""
        await self.publish("completed" if ending.error is None else "failed", error=ending.error, **ending.more)


@dataclass(frozen=True, slots=True)
class Ending:
    """What an event says of a result."""

    error: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


def showing(result: Any, error: str | None = None) -> Ending:
    """An ending that shows `result`, bounded; or an `error`, and no result."""
    return Ending(error, {"result": bounded(result)} if error is None else {})
