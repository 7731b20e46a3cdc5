"""The host of a run without Redis: events go to a handler, the journal is a dictionary, a backoff is a pause."""

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from factorial._core.boundary import Raised, attempt, result_of_call
from factorial._core.conversation import answered
from factorial._core.json import dump_json
from factorial.agent.completion import RunCompletion
from factorial.agent.lifecycle.activation import Activation
from factorial.agent.lifecycle.definition import AgentDefinition
from factorial.agent.lifecycle.failure import describe
from factorial.agent.lifecycle.host import Child, Recorded, SpawnedBatch
from factorial.agent.lifecycle.outcome import (
    Backoff,
    Cancel,
    Complete,
    Continue,
    Fail,
    Outcome,
    Park,
    Release,
    turn_is_done,
)
from factorial.agent.lifecycle.snapshot import ContextSnapshot
from factorial.agent.lifecycle.waiting import PLAN, awaited_keys, encode_plan
from factorial.config import AgentWorkerConfig
from factorial.context import AgentContext, ContextType, ExecutionContext, opening_messages
from factorial.errors import FatalAgentError
from factorial.events import AgentEvent, BaseEvent, EventType, attributed
from factorial.task import new_task_id
from factorial.telemetry.task_log import TaskLog, task_fields

__all__ = ["InlineRun", "run_inline"]

_EventHandler = Callable[[Any], Awaitable[None] | None]


@dataclass(frozen=True, slots=True)
class InlineRun:
    """How a run is executed in the caller's process. Its children are executed in the same way."""

    owner_id: str
    policy: AgentWorkerConfig
    event_handler: _EventHandler | None = None


async def run_inline(
    agent: AgentDefinition[ContextType], context: ContextType, how: InlineRun, task_id: str = ""
) -> RunCompletion[ContextType]:
    """Run `agent` over `context` in this asyncio task. Raises the error that ended the run as failed.

    What it spawns runs at the same time, has ended when this returns, and is cancelled if it fails or is cancelled.
    """
    agent.check_ready()
    started_at = datetime.now(UTC)
    context.messages = opening_messages(context)
    task_id = task_id or new_task_id()
    host = InlineHost(ContextSnapshot(context), how, task_id, agent.name)
    execution_ctx = ExecutionContext(task_id=task_id, owner_id=how.owner_id, events=host, agent_name=agent.name)
    activation = Activation(agent, context, execution_ctx, host, how.policy)
    state, log = activation.state, TaskLog(task_id, agent.name, how.owner_id)
    log.claimed(turn=context.turn, attempt=1, pickups=1)
    await host.publish_event(AgentEvent(EventType.RUN_STARTED))
    try:
        await activation.take_turns()
        if host.failure is None:
            await host.children_ended()
    except asyncio.CancelledError:
        log.cancelled(turn=state.turn)
        with contextlib.suppress(FatalAgentError):  # the caller that cancels must see the cancellation
            await host.publish_event(AgentEvent(EventType.RUN_CANCELLED))
            await activation.notify_end(Cancel())
        raise
    finally:
        await host.cancel_children()
        for left in (context, state.context):  # the caller may use the conversation for the next question
            left.messages = answered(left.messages)
    if host.failure is not None:
        log.failed(describe(host.failure), turn=state.turn, attempt=execution_ctx.retries + 1)
        raise host.failure
    log.completed(turns=state.context.turn, finish_reason=host.finish_reason)
    return RunCompletion(
        state.context.output, state.context, started_at, datetime.now(UTC), finish_reason=host.finish_reason
    )


class InlineHost:
    """Keeps the run's journal in memory, for the retries of its turns, and runs its children at the same time."""

    def __init__(self, snapshot: ContextSnapshot, how: InlineRun, task_id: str, agent_name: str) -> None:
        self.failure: BaseException | None = None
        self.finish_reason: str | None = None
        self._ids = task_id, how.owner_id, agent_name
        self._snapshot = snapshot
        self._how = how
        self._children: dict[str, asyncio.Task[RunCompletion[Any]]] = {}
        self._journal: dict[str, Recorded] = {}
        self._changes: dict[str, Mapping[str, bytes]] = {}
        """For each finished step of this turn that keeps them: the context fields that the turn had changed by then."""
        self._restored: set[str] = set()
        """The steps whose changes the context has, in the present attempt."""

    async def publish_event(self, event: BaseEvent) -> None:
        """Pass `event` to the handler. What it raises ends the run, because another attempt would cost again."""
        handler = self._how.event_handler
        if handler is None:
            return
        event = attributed(event, *self._ids)
        handled: Any = result_of_call(lambda: handler(event))
        if inspect.isawaitable(handled):
            handled = await attempt(lambda: handled)
        if isinstance(handled, Raised):
            broken = handled.error
            raise FatalAgentError(f"event_handler failed on {event.event_type}: {describe(broken)}") from broken

    publish_live = publish_event

    def recall(self, key: str, context: AgentContext | None, *, with_siblings: bool) -> Recorded | None:
        """The step, if an earlier attempt at this turn finished it."""
        if key in self._journal and context is not None and key not in self._restored:
            steps = list(self._changes)
            upto = steps if with_siblings else steps[: steps.index(key) + 1]
            self._restored.update(upto)
            self._snapshot.restore_fields(context, self._changes[upto[-1]])
        return self._journal.get(key)

    async def record(self, key: str, step: Recorded, context: AgentContext | None, *, urgent: bool) -> None:
        """Keep a finished step for the turn's next attempt, with the context fields that it changed."""
        self._journal[key] = step
        if context is not None:
            self._changes[key] = self._snapshot.changed_fields(context)
            self._restored.add(key)

    async def boundary(self) -> None:
        """An inline run is not released."""

    async def expect(self, key: str, step: str, tool: str) -> bool:
        """Nobody outside can deliver a result."""
        raise FatalAgentError(
            f"tool {tool!r} awaits a result from outside, and nobody can deliver one to an inline run: "
            "enqueue the task with an Orchestrator instead"
        )

    async def spawn(self, batch: SpawnedBatch | None, children: Sequence[Child]) -> None:
        """Run them in asyncio tasks of their own."""
        for child in children:
            if child.task_id not in self._children:
                agent = cast(AgentDefinition[Any], child.agent)
                running = run_inline(agent, child.context, self._how, child.task_id)
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
        """Wait for the children of a parked turn, each up to its timeout, and return their results."""
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

    async def settle(self, outcome: Outcome, context: AgentContext, events: Sequence[BaseEvent]) -> Outcome:
        """Carry out what the turn leads to."""
        if turn_is_done(outcome):
            self._journal.clear()
            self._changes.clear()
            self._restored.clear()
            self._snapshot.stored(context, self._snapshot.changes(context))
        for event in events:
            await self.publish_event(event)
        match outcome:
            case Park():
                return Continue(awaits=await self._await(outcome))
            case Backoff(delay):
                await self._pause(delay, outcome.error)
                self._snapshot.restore(context)
                self._restored.clear()
                return Continue()
            case Fail(error):
                self.failure = error
            case Complete(finish_reason=reason):
                self.finish_reason = reason
        return outcome

    async def _pause(self, delay: float, error: BaseException) -> None:
        here = ExecutionContext.current()
        turn = task_fields()["turn"]
        log = TaskLog(here.task_id, here.agent_name, here.owner_id)
        log.retried(describe(error), turn=turn, attempt=here.retries + 1, delay=delay)
        await asyncio.sleep(delay)

    def interruption(self) -> Cancel | Release | None:
        """Only its caller cancels an inline run."""
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
