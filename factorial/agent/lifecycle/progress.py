"""Progress events: `progress_update_{operation}_{started|completed|failed}` around whatever an agent does.

`data` holds `args`, `kwargs` and `context` (checklist E05), and `result` once there is one. All of it is bounded: the
context is a summary, so that an event never grows with the conversation.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from factorial._core.text import shorten
from factorial.agent.lifecycle.failure import describe
from factorial.context import AgentContext, ExecutionContext
from factorial.events import AgentEvent, bounded

__all__ = ["Ending", "Progress", "metadata", "showing", "summary"]

T = TypeVar("T")


def summary(context: AgentContext) -> dict[str, Any]:
    """What an event tells of a context."""
    return {"query": shorten(context.query, 200), "turn": context.turn, "messages": len(context.messages)}


def metadata(execution: ExecutionContext, turn: int) -> dict[str, Any]:
    """Where and when something happened: the turn, the attempt at it (from 1, as in the log), how many times the task
    has been taken up (a step that is executed again after a crash has another number), and the process."""
    return {
        "turn": turn,
        "attempt": execution.retries + 1,
        "pickups": execution.pickups,
        "process": execution.process,
    }


class Progress:
    """One operation of an agent, as the events tell of it. `args` and `kwargs` are what it was called with; `hidden`
    names what is left out: `args`, `kwargs`, `context`."""

    def __init__(
        self,
        operation: str,
        execution: ExecutionContext,
        context: AgentContext,
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        hidden: Collection[str] = (),
    ) -> None:
        self._operation = operation
        self._execution = execution
        self._turn = context.turn
        about = {
            "args": bounded(list(args)) if args else [],
            "kwargs": bounded(dict(kwargs)) if kwargs else {},
            "context": summary(context),
        }
        self._about = {name: value for name, value in about.items() if name not in hidden} if hidden else about

    def event(self, status: str, error: str | None = None, **more: Any) -> AgentEvent:
        """What tells that the operation has `started`, `completed` or `failed` now."""
        execution, turn = self._execution, self._turn
        return AgentEvent(
            event_type=f"progress_update_{self._operation}_{status}",
            task_id=execution.task_id,
            owner_id=execution.owner_id,
            agent_name=execution.agent_name,
            turn=turn,
            metadata=metadata(execution, turn),
            data={**self._about, **more},
            error=error,
        )

    async def tell(self, status: str, error: str | None = None, **more: Any) -> None:
        """Publish it."""
        await self._execution.events.publish_event(self.event(status, error, **more))

    async def follow(self, call: Callable[[], Awaitable[T]], ending: Callable[[T], "Ending | None"]) -> T:
        """Await `call()`, with an event before and one after. `ending` says what the latter tells of the result, if
        there is anything to tell yet."""
        await self.tell("started")
        try:
            result = await call()
        except Exception as error:  # whatever the agent raises is told of, and goes on its way
            await self.tell("failed", error=describe(error))
            raise
        if told := ending(result):
            await self.tell_end(told)
        return result

    async def tell_end(self, ending: "Ending") -> None:
        """Publish how the operation has ended."""
        await self.tell("completed" if ending.error is None else "failed", error=ending.error, **ending.more)


@dataclass(frozen=True, slots=True)
class Ending:
    """What an event tells of a result."""

    error: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


def showing(result: Any, error: str | None = None) -> Ending:
    """An ending that shows `result`, bounded; or an `error`, and no result."""
    return Ending(error, {"result": bounded(result)} if error is None else {})
