"""The host of a run without Redis: events go to a handler, the journal is a dictionary, a backoff is a pause."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from factorial.agent.completion import RunCompletion
from factorial.agent.host import Answer, Left, Proceed, Recorded, Retried, Settlement
from factorial.agent.run import Run
from factorial.config import AgentWorkerConfig
from factorial.context import AgentContext, ExecutionContext, opening_messages
from factorial.errors import ConfigError
from factorial.events import AgentEvent, BaseEvent, EventType
from factorial.snapshot import ContextSnapshot
from factorial.task import Backoff, Cancel, Continue, Fail, Release, new_task_id

if TYPE_CHECKING:
    from factorial.agent.agent import BaseAgent

__all__ = ["run_inline"]

ContextType = TypeVar("ContextType", bound=AgentContext)
EventHandler = Callable[[BaseEvent], Awaitable[None] | None]


async def run_inline(
    agent: "BaseAgent[ContextType]",
    context: ContextType,
    event_handler: EventHandler | None,
    owner_id: str,
    policy: AgentWorkerConfig,
) -> RunCompletion[ContextType]:
    """Run `agent` over `context` in this asyncio task. Raises the error that ended the run as failed."""
    if not isinstance(context, agent.context_class):
        raise ConfigError(
            f"agent {agent.name!r} works on {agent.context_class.__name__}, and was given a {type(context).__name__}"
        )
    agent.check_ready()
    started_at = datetime.now(UTC)
    context.messages = opening_messages(context)
    host = InlineHost(ContextSnapshot(context), event_handler)
    execution = ExecutionContext(task_id=new_task_id(), owner_id=owner_id, events=host, agent_name=agent.name)
    run = Run(agent, context, execution, host, policy)
    await host.tell(execution, EventType.RUN_STARTED)
    try:
        await run.take_turns()
    except asyncio.CancelledError:
        await host.tell(execution, EventType.RUN_CANCELLED)
        raise
    if host.failure is not None:
        raise host.failure
    return RunCompletion(run.context.output, run.context, started_at, finished_at=datetime.now(UTC))


class InlineHost:
    """Keeps the run's journal in memory, for the retries of its turns."""

    def __init__(self, snapshot: ContextSnapshot, event_handler: EventHandler | None) -> None:
        self.failure: BaseException | None = None
        self._snapshot = snapshot
        self._event_handler = event_handler
        self._journal: dict[str, Recorded] = {}
        self._changed: Mapping[str, bytes] = {}
        """The context fields that the finished steps of this turn have changed."""

    async def tell(self, execution: ExecutionContext, event_type: EventType) -> None:
        """Publish what the mailbox publishes for a run that lives in Redis."""
        await self.publish_event(
            AgentEvent(
                event_type=event_type,
                task_id=execution.task_id,
                owner_id=execution.owner_id,
                agent_name=execution.agent_name,
            )
        )

    async def publish_event(self, event: BaseEvent) -> None:
        """Hand `event` to the handler."""
        if self._event_handler is not None:
            handled = self._event_handler(event)
            if inspect.isawaitable(handled):
                await handled

    publish_live = publish_event

    def recall(self, key: str) -> Recorded | None:
        """The step, if a try of this turn finished it."""
        return self._journal.get(key)

    async def record(self, key: str, step: Recorded, *, urgent: bool) -> None:
        """Keep a finished step for the turn's next try, with the context fields that it changed."""
        self._journal[key] = step
        run: Run[Any] = ExecutionContext.current().run
        self._changed = self._snapshot.changed_fields(run.context)

    async def settle(self, settlement: Settlement) -> Answer:
        """Carry out what the turn came to."""
        if isinstance(settlement.step, Continue):
            self._journal.clear()
            self._changed = {}
            self._snapshot.stored(settlement.context, self._snapshot.changes(settlement.context))
            return Proceed()
        for event in settlement.endings:
            await self.publish_event(event)
        match settlement.step:
            case Backoff(delay, _):
                await asyncio.sleep(delay)
                self._snapshot.restore(settlement.context, self._changed)
                return Retried()
            case Fail(error):
                self.failure = error
        return Left()

    def interruption(self) -> Cancel | Release | None:
        """An inline run is only ever cancelled by its caller."""
        return None
