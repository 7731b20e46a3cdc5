"""`DurableHost`: one activation in a worker, and the asyncio task that executes it. Agent and mailbox meet here only.

    claimed run -> context -> the activation takes turns -> each outcome becomes a commit -> what was carried out

Made by the worker for each run that it claims. Every write carries the claim's token. Once another process holds the
task, the answer is `Superseded`, and the activation ends without writing anything more.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, assert_never

from factorial.actors.commits import (
    Turn,
    action_of,
    carried_out,
    changes_of,
    commit_of,
    commit_of_error,
    due_in,
    log_commit,
)
from factorial.actors.interruption import Interruption
from factorial.actors.journal import Journal
from factorial.actors.outbox import Outbox, Reply
from factorial.agent.agent import BaseAgent
from factorial.agent.lifecycle.activation import RUN_START, Activation, PickedUp
from factorial.agent.lifecycle.codec import decode_context, decode_message, encode_fields, encode_messages
from factorial.agent.lifecycle.failure import after_failure
from factorial.agent.lifecycle.fidelity import check_comes_back
from factorial.agent.lifecycle.host import Child, Recorded, SpawnedBatch
from factorial.agent.lifecycle.outcome import (
    Cancel,
    Complete,
    Continue,
    Defer,
    Fail,
    Outcome,
    Release,
    turn_is_done,
)
from factorial.agent.lifecycle.snapshot import ContextSnapshot
from factorial.config import AgentWorkerConfig
from factorial.context import AgentContext, ExecutionContext, opening_messages
from factorial.errors import FactorialError, MailboxError, RetryableError, UnreadableContextError
from factorial.events import BaseEvent, attributed, encode_event
from factorial.mailbox.operations.cancel import cascade
from factorial.mailbox.operations.claim import ClaimedRun
from factorial.mailbox.operations.commit import Action, Commit, Committed, EntryMissing, commit
from factorial.mailbox.operations.publish import Publisher
from factorial.mailbox.operations.record import Accepted, Superseded
from factorial.mailbox.operations.spawn import ChildBatch, NewRun, spawn
from factorial.mailbox.script import Scripts
from factorial.telemetry.task_log import TaskLog

__all__ = ["DurableHost", "Workplace"]

_GOING_ON = (Action.CONTINUE, Action.RESUME)


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where runs are executed: for which agent, in which process, by which rules."""

    agent: BaseAgent[Any]
    scripts: Scripts
    process: str
    policy: AgentWorkerConfig


class DurableHost:
    """The host of one claimed run."""

    def __init__(self, workplace: Workplace, claimed: ClaimedRun) -> None:
        self.task_id: str = claimed.task_id
        self.due_in: float | None = None
        """When the activation is over: the seconds after which the run is due again, if it backs off, or is parked with
        a deadline."""
        self._workplace = workplace
        self._claimed = claimed
        self._token = claimed.token
        self._outbox = Outbox(workplace.scripts, claimed.task_id, claimed.token, self._on_reply)
        if claimed.deferred_for:
            self._outbox.hold_back()
        self._interruption = Interruption()
        self._log = TaskLog(claimed.task_id, workplace.agent.name, claimed.owner_id, age=claimed.age)
        self._turn = 0
        self._attempt = claimed.retries + 1
        self._finish_reason: str | None = None
        self._unanswered: Commit | None = None
        self._task: asyncio.Task[None] | None = None

    # What the worker calls.

    def start(self) -> "asyncio.Task[None]":
        """Execute the run in an asyncio task of its own, which is returned. The task raises nothing."""
        if self._claimed.cancelled:
            self.cancel()
        self._task = asyncio.get_running_loop().create_task(self._execute(), name=f"task {self.task_id}")
        return self._task

    def cancel(self) -> None:
        """Somebody asked for the run to end: break off what is being done, and end it as cancelled."""
        self._break_off(self._interruption.cancel())

    def drain(self) -> None:
        """Release the task at the next step boundary."""
        self._interruption.drain()

    def release(self) -> None:
        """Break off what is being done, and release the task now."""
        self._break_off(self._interruption.release())

    def abandon(self) -> None:
        """Another process holds the task: stop, and write nothing."""
        self._break_off(self._interruption.abandon())

    def _break_off(self, now: bool) -> None:
        if now and self._task is not None:
            self._task.cancel()

    # The activation.

    async def _execute(self) -> None:
        try:
            if not self._interruption.is_abandoned:
                await self._activate()
        except asyncio.CancelledError:
            abandoned = self._interruption.is_abandoned
            self._log.superseded() if abandoned else self._log.problem(logging.INFO, "its process ends")
        except MailboxError as lost:
            self._log.problem(logging.ERROR, f"releasing it: {lost}")
            await self._release_when_possible()
        except Exception as unexpected:  # nothing else would see it, and the run would be held for ever
            if not isinstance(unexpected, UnreadableContextError):
                self._log.problem(logging.ERROR, "it cannot be executed", unexpected)
            await self._end_without_turn(unexpected)
        finally:
            self._outbox.close()

    async def _activate(self) -> None:
        activation = self._load()
        claimed = self._claimed
        self._log.claimed(
            turn=self._turn, attempt=self._attempt, pickups=claimed.pickups, is_deferred=claimed.deferred_for > 0
        )
        try:
            with self._interruption.opened():
                if self._interruption.wanted is None:
                    await activation.take_turns()
                else:
                    await self._leave_at_once(activation)
        finally:
            self._journal.close()
            del self._snapshot  # with the conversation: the event loop may keep what is left of a host

    def _load(self) -> Activation[Any]:
        """The activation over the stored context. `recall` restores what the turn's finished steps changed."""
        claimed, agent = self._claimed, self._workplace.agent
        context = decode_context(agent.context_class, claimed.fields, claimed.conversation)
        self._snapshot = ContextSnapshot(context, claimed.fields)
        self._journal = Journal(claimed.journal, self._snapshot)
        self._turn = context.turn
        execution_ctx = ExecutionContext(
            task_id=self.task_id,
            owner_id=claimed.owner_id,
            events=self,
            agent_name=agent.name,
            retries=claimed.retries,
            pickups=claimed.pickups,
            process=self._workplace.process,
        )
        # As far as is known: nothing was committed, or no turn counts as finished, or only its start is recorded.
        is_new = claimed.token.seq == 0 or context.turn == 0 or RUN_START in claimed.journal
        picked_up = PickedUp(claimed.awaits, claimed.started_at, is_new, claimed.deferred_for)
        self._claimed = replace(claimed, conversation=(), fields={}, journal={}, awaits={})  # the context has it all
        return Activation(agent, context, execution_ctx, self, self._workplace.policy, picked_up)

    async def _leave_at_once(self, activation: Activation[Any]) -> None:
        """The activation was interrupted before it began."""
        answer = await self._commit(Commit(action_of(self.interruption()), turn_done=False))
        self._end()
        if answer is not None and answer.action is Action.CANCEL:
            await activation.notify_end(Cancel())

    async def _release_when_possible(self) -> None:
        """The server could not be reached: send the same commit until it is answered, and release the task."""
        release = Commit(Action.RELEASE, turn_done=False)
        while True:
            await asyncio.sleep(random.uniform(0.5, 1.5))
            try:
                answer = await self._commit(self._unanswered or release)
                if answer is not None and answer.action in _GOING_ON:
                    answer = await self._commit(release)
            except MailboxError as still_lost:
                self._log.problem(logging.WARNING, f"not released yet: {still_lost}")
            except Exception as refused:  # the server does not accept that commit any more: release the task without it
                self._log.problem(logging.ERROR, "what was done in its last turn is lost", refused)
                self._unanswered = None
            else:
                return

    async def _end_without_turn(self, error: Exception) -> None:
        """What is stored cannot be worked with. The task is deferred if other code may read it, and tried again if a
        validator failed. Otherwise it fails."""
        claimed, policy = self._claimed, self._workplace.policy
        ids = {"task_id": self.task_id, "owner_id": claimed.owner_id, "agent_name": self._workplace.agent.name}
        is_known = isinstance(error, FactorialError)
        outcome = after_failure(error, claimed.retries, claimed.deferred_for, policy) if is_known else Fail(error)
        try:
            await self._commit(commit_of_error(outcome, ids, policy))
        except MailboxError as lost:
            self._log.problem(logging.ERROR, f"releasing it: {lost}")
            await self._release_when_possible()
        except Exception as refused:  # its keys were damaged: the inventory releases it, and the next claim ends it
            self._log.problem(logging.ERROR, "the server does not accept its end", refused)

    def _end(self) -> None:
        """The activation is over. What a callback still does is not part of it, and no reply stops it."""
        self._interruption.end()
        self._outbox.close()

    # What the activation calls: see `agent/lifecycle/host.py`.

    async def publish_event(self, event: BaseEvent) -> None:
        """Publish `event` with the next message to the server, at most a moment later."""
        event = attributed(event, self.task_id, self._claimed.owner_id, self._workplace.agent.name)
        if self._interruption.has_ended:
            with contextlib.suppress(MailboxError):
                await Publisher(self._workplace.scripts, self._claimed.owner_id).publish_event(event)
            return
        self._outbox.add_event(encode_event(event), is_progress=event.event_type.startswith("progress_update_"))

    async def publish_live(self, event: BaseEvent) -> None:
        """Send `event` to present subscribers. It is not stored, and no answer is awaited."""
        self._outbox.let_out()
        await self._outbox.flush()
        scripts = self._workplace.scripts
        with contextlib.suppress(MailboxError):
            await scripts.commands.execute("PUBLISH", scripts.keys.channel(self._claimed.owner_id), encode_event(event))

    def recall(self, key: str, context: AgentContext | None, *, with_siblings: bool) -> Recorded | None:
        """The step, if an earlier attempt at this turn recorded it."""
        return self._journal.recall(key, context, with_siblings=with_siblings)

    async def record(self, key: str, step: Recorded, context: AgentContext | None, *, urgent: bool) -> None:
        """Record a finished step, with the context fields that it changed."""
        if self._interruption.has_ended:
            return
        self._outbox.let_out()
        self._outbox.add_entries(self._journal.entries_of(key, step, context))
        if urgent:
            await self._outbox.flush()

    async def boundary(self) -> None:
        """Release the task here if the process drains."""
        if self._interruption.is_draining and not self._interruption.has_ended:
            self.release()
            await asyncio.sleep(0)  # where the cancellation arrives

    async def expect(self, key: str, step: str, tool: str) -> bool:
        """Have the server accept the result `key`: it may come before the task is parked."""
        entry = self._journal.expect(key, step)
        if entry is not None:
            self._outbox.add_entries(entry)
            await self._outbox.flush()
        return entry is not None

    async def spawn(self, batch: SpawnedBatch | None, children: Sequence[Child]) -> None:
        """Store and queue them. Raises `RetryableError` if the server cannot be reached."""
        if self._interruption.has_ended:
            raise FactorialError("the run has ended: it can spawn nothing any more")
        runs = [_new_run(child) for child in children]
        try:
            answer = await spawn(
                self._workplace.scripts,
                parent=self.task_id,
                token=self._token,
                batch=ChildBatch(batch.batch_id, batch.seed, batch.max_turns) if batch else None,
                children=runs,
            )
        except MailboxError as lost:
            raise RetryableError(f"the children could not be stored: {lost}") from None
        self._on_reply(answer)
        await asyncio.sleep(0)  # where a cancellation arrives

    def interruption(self) -> Cancel | Release | None:
        """Why the asyncio task was cancelled, once: a further cancellation has another reason."""
        wanted = self._interruption.take()
        if wanted is not None and self._task is not None:
            self._task.uncancel()
        return wanted

    async def settle(self, outcome: Outcome, context: AgentContext, events: Sequence[BaseEvent]) -> Outcome | None:
        """Commit the outcome."""
        if not isinstance(outcome, Defer):
            self._outbox.let_out()
        await self._finish_sending()
        self._turn = context.turn - turn_is_done(outcome)
        self._finish_reason = outcome.finish_reason if isinstance(outcome, Complete) else None
        changes, output = changes_of(self._snapshot, outcome, context)
        turn = Turn(changes, output, self._outbox.take(), self._journal, events)
        answer = await self._commit(commit_of(outcome, turn, is_draining=self._interruption.is_draining))
        awaits = answer.awaits if answer is not None else {}
        if answer is not None and answer.action in _GOING_ON and self._is_to_leave:
            answer = await self._commit(Commit(action_of(self._interruption.wanted), turn_done=False))
        if answer is None or answer.action not in _GOING_ON or self._interruption.is_abandoned:
            self._end()
            return None if answer is None or answer.action in _GOING_ON else carried_out(answer.action, outcome)
        if output:
            context.output = None  # a steer has come: it was not the last word
        self._snapshot.stored(context, changes)
        messages = [decode_message(message) for message in answer.mail]
        context.messages.extend(messages)
        self._snapshot.stored_messages(messages)
        self._journal, self._attempt = Journal({}, self._snapshot), 1
        return Continue(awaits)

    @property
    def _is_to_leave(self) -> bool:
        return self._interruption.wanted is not None or self._interruption.is_draining

    async def _finish_sending(self) -> None:
        """The turn has ended. An interruption that was on its way is too late for it, and is carried out by the commit.
        What is under way must not arrive after the commit."""
        with self._interruption.shielded():
            if self._interruption.wanted is not None:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
                self._interruption.drain()
                self.interruption()
            with self._outbox.held():  # pending events ride on the commit: a turn is durable before it is published
                await self._outbox.answered()

    async def _commit(self, work: Commit) -> Committed | None:
        with self._interruption.shielded(), self._outbox.held():
            answer = await self._send(work)
        self._unanswered = None
        if isinstance(answer, Superseded):
            self._log.superseded()
            return None
        about = {"turn": self._turn, "attempt": self._attempt}
        log_commit(self._log, answer.action, work, **about, finish_reason=self._finish_reason)
        if answer.action is Action.CANCEL:
            self._interruption.end()  # a further request to cancel does not break off the callbacks
            with contextlib.suppress(MailboxError):  # what the run has spawned; otherwise maintenance cancels it
                await cascade(self._workplace.scripts)
        self._token = self._outbox.token = self._token.next()
        self.due_in = due_in(work) if answer.action in (Action.BACKOFF, Action.DEFER, Action.PARK) else None
        return answer

    async def _send(self, work: Commit) -> Committed | Superseded:
        self._unanswered = work
        scripts, process = self._workplace.scripts, self._workplace.process
        answer = await commit(scripts, task_id=self.task_id, process=process, token=self._token, work=work)
        if isinstance(answer, EntryMissing):
            return await self._send(replace(work, messages=self._journal.in_full(work.messages)))
        return answer

    def _on_reply(self, reply: Reply) -> None:
        """What the server answers to a message that was sent without a commit."""
        match reply:
            case Accepted(cancelled=True):
                self.cancel()
            case Accepted():
                pass
            case Superseded():
                self.abandon()
            case MailboxError():
                self.release()
            case never:
                assert_never(never)


def _new_run(child: Child) -> NewRun:
    fields = encode_fields(child.context)
    check_comes_back(child.context, fields)
    return NewRun(child.task_id, child.agent.name, encode_messages(opening_messages(child.context)), fields)
