"""The host of a run without Redis: events go to a handler, the journal is a dictionary, a backoff is a pause."""

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from factorial._core.json import dump_json
from factorial._core.text import with_article
from factorial.agent.completion import RunCompletion
from factorial.agent.lifecycle.activation import Run
from factorial.agent.lifecycle.failure import describe
from factorial.agent.lifecycle.host import (
    RUN_START,
    Answer,
    Child,
    Left,
    Proceed,
    Recorded,
    Resumed,
    Retried,
    Settlement,
)
from factorial.agent.lifecycle.snapshot import ContextSnapshot
from factorial.agent.lifecycle.waiting import PLAN, awaited_keys, encode_plan
from factorial.config import AgentWorkerConfig
from factorial.context import ContextType, ExecutionContext, opening_messages
from factorial.errors import ConfigError, FatalAgentError
from factorial.events import AgentEvent, BaseEvent, EventType
from factorial.task import Backoff, Cancel, Complete, Continue, Fail, Park, Release, new_task_id
from factorial.telemetry.story import Story

if TYPE_CHECKING:
    from factorial.agent.agent import BaseAgent

__all__ = ["run_inline"]

EventHandler = Callable[[BaseEvent], Awaitable[None] | None]


async def run_inline(
    agent: "BaseAgent[ContextType]",
    context: ContextType,
    event_handler: EventHandler | None,
    owner_id: str,
    policy: AgentWorkerConfig,
    task_id: str = "",
) -> RunCompletion[ContextType]:
    """Run `agent` over `context` in this asyncio task. Raises the error that ended the run as failed.

    What it spawns runs beside it, has ended when this returns, and is cancelled if it fails or is cancelled.
    """
    if not isinstance(context, agent.context_class):
        raise ConfigError(
            f"agent {agent.name!r} works on {agent.context_class.__name__}, and was given "
            f"{with_article(type(context).__name__)}: use {agent.context_class.__name__}(query=...)"
        )
    agent.check_ready()
    started_at = datetime.now(UTC)
    context.messages = opening_messages(context)
    host = InlineHost(ContextSnapshot(context), event_handler, owner_id, policy)
    execution = ExecutionContext(
        task_id=task_id or new_task_id(), owner_id=owner_id, events=host, agent_name=agent.name
    )
    run = Run(agent, context, execution, host, policy)
    story = Story(execution.task_id, agent.name, owner_id)
    story.taken_up(turn=context.turn, attempt=1, pickups=1)
    await host.tell(execution, EventType.RUN_STARTED)
    try:
        await run.take_turns()
        if host.failure is None:
            await host.children_ended()
    except asyncio.CancelledError:
        story.cancelled(turn=run.turn)
        with contextlib.suppress(FatalAgentError):  # whoever cancels has to see that
            await host.tell(execution, EventType.RUN_CANCELLED)
            with execution.active():
                await run.tell_of_end(Left(Cancel()))
        raise
    finally:
        await host.cancel_children()
    if host.failure is not None:
        story.failed(describe(host.failure), turn=run.turn, attempt=execution.retries + 1)
        raise host.failure
    story.completed(turns=run.context.turn)
    return RunCompletion(run.context.output, run.context, started_at, finished_at=datetime.now(UTC))


class InlineHost:
    """Keeps the run's journal in memory, for the retries of its turns, and runs its children beside it."""

    def __init__(
        self,
        snapshot: ContextSnapshot,
        event_handler: EventHandler | None,
        owner_id: str,
        policy: AgentWorkerConfig,
    ) -> None:
        self.failure: BaseException | None = None
        self._snapshot = snapshot
        self._event_handler = event_handler
        self._owner_id = owner_id
        self._policy = policy
        self._children: dict[str, asyncio.Task[RunCompletion[Any]]] = {}
        self._journal: dict[str, Recorded] = {}
        self._changes: dict[str, Mapping[str, bytes]] = {}
        """For each finished step of this turn: the context fields that the turn had changed by then."""
        self._recalled: set[str] = set()
        """Those whose changes the context has, in the present try."""

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
        """Hand `event` to the handler. What it raises ends the run, since another try would cost again."""
        if self._event_handler is None:
            return
        try:
            handled = self._event_handler(event)
            if inspect.isawaitable(handled):
                await handled
        except Exception as broken:
            raise FatalAgentError(f"event_handler failed on {event.event_type}: {describe(broken)}") from broken

    publish_live = publish_event

    def recall(self, key: str) -> Recorded | None:
        """The step, if a try of this turn finished it."""
        if key not in self._journal:
            return None
        latest = key if key == RUN_START else next(reversed(self._changes))
        if latest not in self._recalled:
            self._recalled.update([key] if key == RUN_START else self._changes)
            self._snapshot.restore_fields(ExecutionContext.current().run.context, self._changes[latest])
        return self._journal[key]

    async def record(self, key: str, step: Recorded, *, urgent: bool) -> None:
        """Keep a finished step for the turn's next try, with the context fields that it changed."""
        self._journal[key] = step
        run: Run[Any] = ExecutionContext.current().run
        self._changes[key] = self._snapshot.changed_fields(run.context)
        self._recalled.add(key)

    async def expect(self, key: str, tool: str) -> None:
        """There is nobody outside."""
        raise FatalAgentError(
            f"tool {tool!r} waits for a result from outside, and nobody could give it to an inline run: "
            "enqueue the task with an Orchestrator instead"
        )

    async def spawn(self, batch_id: str, children: Sequence[Child]) -> None:
        """Run them in asyncio tasks beside this one."""
        for child in children:
            if child.task_id not in self._children:
                running = run_inline(
                    child.agent, child.context, self._event_handler, self._owner_id, self._policy, child.task_id
                )
                self._children[child.task_id] = asyncio.create_task(running, name=f"task {child.task_id}")

    async def children_ended(self) -> None:
        """Return when all that was spawned has ended."""
        if self._children:
            await asyncio.wait(self._children.values())

    async def cancel_children(self) -> None:
        """Cancel what still runs, and wait for its end."""
        for child in self._children.values():
            child.cancel()
        await asyncio.gather(*self._children.values(), return_exceptions=True)

    async def _await(self, waiting: Park) -> Mapping[str, bytes]:
        """Wait for the children of a parked turn, each as long as it says, and give what came of them."""
        arrived: dict[str, bytes] = {PLAN: encode_plan(waiting)}
        by_timeout: dict[float, list[str]] = {}
        for key, timeout in awaited_keys(waiting).items():
            by_timeout.setdefault(timeout, []).append(key.removeprefix("child:"))

        async def wait(task_ids: list[str], timeout: float) -> None:
            known = [self._children[task_id] for task_id in task_ids if task_id in self._children]
            if known:
                await asyncio.wait(known, timeout=timeout or None)
            for task_id in task_ids:
                arrived[f"child:{task_id}"] = b"!" + dump_json(_outcome(self._children.get(task_id)))

        await asyncio.gather(*(wait(task_ids, timeout) for timeout, task_ids in by_timeout.items()))
        return arrived

    async def settle(self, settlement: Settlement) -> Answer:
        """Carry out what the turn came to."""
        if settlement.turn_done:
            self._journal.clear()
            self._changes.clear()
            self._recalled.clear()
            self._snapshot.stored(settlement.context, self._snapshot.changes(settlement.context))
        if isinstance(settlement.step, Continue):
            return Proceed()
        for event in settlement.endings:
            await self.publish_event(event)
        match settlement.step:
            case Park() as waiting:
                return Resumed(await self._await(waiting))
            case Complete() as completed:
                return Left(completed)
            case Backoff(delay, error):
                here = ExecutionContext.current()
                story = Story(here.task_id, here.agent_name, here.owner_id)
                story.retried(describe(error), turn=here.run.turn, attempt=here.retries + 1, delay=delay)
                await asyncio.sleep(delay)
                self._snapshot.restore(settlement.context)
                self._recalled.clear()
                return Retried()
            case Fail(error) as failed:
                self.failure = error
                return Left(failed)
        return Left()

    def interruption(self) -> Cancel | Release | None:
        """An inline run is only ever cancelled by its caller."""
        return None


def _outcome(child: "asyncio.Task[RunCompletion[Any]] | None") -> dict[str, Any]:
    """What became of a child that is not waited for any longer; what has not ended is cancelled."""
    if child is None:
        return {"status": "unknown"}
    if not child.done():
        child.cancel()
        return {"status": "expired"}
    if child.cancelled():
        return {"status": "cancelled", "error": ""}
    if error := child.exception():
        return {"status": "failed", "error": describe(error)}
    return {"status": "completed", "output": child.result().output}
