"""One run in a worker: the host that keeps it in the mailbox. Here, and only here, agent and mailbox meet.

    claimed run -> context -> agent/run.py takes turns -> each settlement becomes a commit -> as the mailbox answers

Started by the worker for each run that it claims. Every write carries the claim's token: once somebody else holds the
run, the answer is `Superseded`, and the execution ends without a trace.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, assert_never

from pydantic_core import to_json

from factorial._core.json import dump_json, load_json
from factorial.actors.outbox import Ledger, Reply
from factorial.agent.agent import BaseAgent
from factorial.agent.lifecycle.activation import Run
from factorial.agent.lifecycle.failure import describe, explain_failure
from factorial.agent.lifecycle.host import RUN_START, Answer, Child, Left, Proceed, Recorded, Resumed, Settlement
from factorial.agent.lifecycle.snapshot import (
    Changes,
    ContextSnapshot,
    decode_context,
    decode_message,
    encode_fields,
    encode_messages,
)
from factorial.agent.lifecycle.waiting import awaited_keys, encode_plan
from factorial.config import AgentWorkerConfig
from factorial.context import AgentContext, ExecutionContext, opening_messages
from factorial.errors import ContextError, FactorialError, MailboxError, RetryableError
from factorial.events import AgentEvent, BaseEvent, EventType, encode_event
from factorial.mailbox.operations.claim import ClaimedRun
from factorial.mailbox.operations.commit import Action, Commit, Committed, EntryMissing, commit
from factorial.mailbox.operations.publish import Publisher
from factorial.mailbox.operations.record import Noted, Superseded
from factorial.mailbox.operations.spawn import NewRun, spawn
from factorial.mailbox.operations.upkeep import cascade
from factorial.mailbox.script import Scripts
from factorial.task import Backoff, Cancel, Complete, Continue, Fail, Park, Release
from factorial.telemetry.story import Story

__all__ = ["Execution"]

# Before a step's key, which ends with whatever id the provider gave the call.
_MESSAGE = "message:"
_CONTEXT = "context:"
_EXPECTED = "expected:"
_GOING_ON = (Action.CONTINUE, Action.RESUME)
_ERROR_LIMIT = 2000


class Execution:
    """The host of one claimed run, and the asyncio task that executes it."""

    def __init__(
        self, agent: BaseAgent[Any], claimed: ClaimedRun, scripts: Scripts, process: str, policy: AgentWorkerConfig
    ) -> None:
        self.task_id = claimed.task_id
        self._agent = agent
        self._claimed = claimed
        self._scripts = scripts
        self._process = process
        self._policy = policy
        self._token = claimed.token
        self._ledger = Ledger(scripts, claimed.task_id, claimed.token, self._hear)
        self._journal: Mapping[str, bytes] = claimed.journal
        self._journaled: dict[bytes, str] = {}
        self._context_entries = 0
        self._recalled_change = 0
        self._story = Story(claimed.task_id, agent.name, claimed.owner_id)
        self._turn = 0
        self._attempt = claimed.retries + 1
        self._unanswered: Commit | None = None
        self._interruption: Cancel | Release | None = None
        self._abandoned = False
        self._draining = False
        self._interruptible = False
        self._has_ended = False
        self._task: asyncio.Task[None] | None = None
        self.due_in: float | None = None
        """Once the execution is over: the seconds after which the run is due again, if it backs off, or is parked and
        waits for something no longer than that."""

    # -- for the worker

    def start(self) -> "asyncio.Task[None]":
        """Execute the run in an asyncio task of its own, which this returns. It raises nothing."""
        if self._claimed.cancelled:
            self.cancel()
        self._task = asyncio.get_running_loop().create_task(self._execute(), name=f"task {self.task_id}")
        return self._task

    def cancel(self) -> None:
        """Somebody asked for the run to end: abandon what is being done, and end it."""
        self._interrupt(Cancel())

    def drain(self) -> None:
        """Give the run back at the next step boundary."""
        self._draining = True

    def release(self) -> None:
        """Abandon what is being done, and give the run back now."""
        self._interrupt(Release())

    def abandon(self) -> None:
        """The run is not ours any more: stop, and write nothing. What a callback still does after the end may go on."""
        if not self._has_ended:
            self._abandoned = True
            self._break_off()

    def _interrupt(self, why: Cancel | Release) -> None:
        if self._interruption is None and not self._abandoned and not (self._has_ended and isinstance(why, Cancel)):
            self._interruption = why
            self._break_off()

    def _break_off(self) -> None:
        # A task that was cancelled before its first step would never run at all, and what is being written is heard to
        # its end: in both cases what comes next sees why.
        if self._task is not None and self._interruptible:
            self._task.cancel()

    @contextlib.contextmanager
    def _uninterrupted(self) -> Iterator[None]:
        before, self._interruptible = self._interruptible, False
        try:
            yield
        finally:
            self._interruptible = before

    # -- the execution itself

    async def _execute(self) -> None:
        try:
            if not self._abandoned:
                await self._take_turns()
        except asyncio.CancelledError:
            self._story.superseded() if self._abandoned else self._story.trouble(logging.INFO, "its process ends")
        except MailboxError as lost:
            self._story.trouble(logging.ERROR, f"giving it back: {lost}")
            await self._give_back()
        except Exception as unexpected:  # nobody else hears of it, and the run would be held for ever
            self._story.trouble(logging.ERROR, "it cannot be executed", unexpected)
            await self._give_up(unexpected)
        finally:
            self._ledger.close()

    async def _take_turns(self) -> None:
        context, self._snapshot = self._load()
        claimed = self._claimed
        # No turn of it is done, as far as that can be told.
        begins = claimed.token.seq == 0 or context.turn == 0 or RUN_START in claimed.journal
        # The context has it all now.
        self._claimed = replace(claimed, conversation=(), fields={}, journal={}, awaited={})
        execution = ExecutionContext(
            task_id=self.task_id,
            owner_id=self._claimed.owner_id,
            events=self,
            agent_name=self._agent.name,
            retries=self._claimed.retries,
            pickups=self._claimed.pickups,
            process=self._process,
        )
        self._turn = context.turn
        self._story.taken_up(turn=self._turn, attempt=self._attempt, pickups=self._claimed.pickups)
        self._interruptible = True
        try:
            run = Run(
                self._agent,
                context,
                execution,
                self,
                self._policy,
                awaited=claimed.awaited,
                started_at=claimed.started_at,
            )
            del claimed
            if self._interruption is not None:
                await self._leave_at_once(run)
            else:
                await run.take_turns(begins=begins)
        finally:
            self._interruptible = False
            del self._snapshot  # with the conversation: the event loop may hold on to what is left of an execution

    async def _leave_at_once(self, run: Run[Any]) -> None:
        """It was interrupted before it began."""
        answer = await self._commit(Commit(_as_action(self.interruption()), turn_done=False))
        self._has_ended = True
        self._ledger.close()
        try:
            if answer is not None and answer.action is Action.CANCEL:
                with run.execution.active():
                    await run.tell_of_end(Left(Cancel()))
        finally:
            run.execution.run = None

    def _load(self) -> tuple[AgentContext, ContextSnapshot]:
        """The context as it is stored. What the finished steps of this turn have changed comes with `recall`."""
        context = decode_context(self._agent.context_class, self._claimed.fields, self._claimed.conversation)
        self._context_entries = sum(_CONTEXT + key in self._journal for key in self._journal)
        return context, ContextSnapshot(context, self._claimed.fields)

    async def _give_back(self) -> None:
        """The mailbox could not be written: send the same commit until it is answered, and let go of the run."""
        release = Commit(Action.RELEASE, turn_done=False)
        while True:
            await asyncio.sleep(random.uniform(0.5, 1.5))
            try:
                answer = await self._commit(self._unanswered or release)
                if answer is not None and answer.action in _GOING_ON:
                    answer = await self._commit(release)
            except MailboxError as still_lost:
                self._story.trouble(logging.WARNING, f"not given back yet: {still_lost}")
            except Exception as refused:  # the server will not have that commit any more: let go of the run without it
                self._story.trouble(logging.ERROR, "what was done in its last turn is lost", refused)
                self._unanswered = None
            else:
                return

    async def _give_up(self, error: Exception) -> None:
        """The run ends as failed: what is stored for it cannot be worked with, and never will."""
        event = AgentEvent(
            event_type=EventType.RUN_FAILED,
            task_id=self.task_id,
            owner_id=self._claimed.owner_id,
            agent_name=self._agent.name,
            error=explain_failure(self._agent.name, self.task_id, error),
        )
        failure = describe(error)[:_ERROR_LIMIT]
        work = Commit(Action.FAIL, turn_done=False, error=failure, final_events=[encode_event(event)])
        try:
            await self._commit(work)
        except MailboxError as lost:
            self._story.trouble(logging.ERROR, f"giving it back: {lost}")
            await self._give_back()
        except Exception as refused:  # its keys were damaged: the inventory gives it back, and the next claim ends it
            self._story.trouble(logging.ERROR, "the server does not take its end", refused)

    # -- the host's side of the run: see agent/host.py

    async def publish_event(self, event: BaseEvent) -> None:
        """Publish `event` with the next message to the mailbox, a moment later at the most."""
        if self._has_ended:
            with contextlib.suppress(MailboxError):
                await Publisher(self._scripts, self._claimed.owner_id).publish_event(event)
            return
        self._ledger.add_event(encode_event(event))

    async def publish_live(self, event: BaseEvent) -> None:
        """Send `event` to whoever listens now. It is not kept, and not waited for."""
        await self._ledger.flush()
        with contextlib.suppress(MailboxError):
            await self._scripts.commands.execute(
                "PUBLISH", self._scripts.keys.channel(self._claimed.owner_id), encode_event(event)
            )

    def recall(self, key: str) -> Recorded | None:
        """The step, if an earlier attempt at this turn finished it."""
        result = self._journal.get(key)
        if result is None:
            return None
        self._recall_changes([key] if key == RUN_START else list(self._journal))
        return Recorded(result, self._journal.get(_MESSAGE + key, b""))

    def _recall_changes(self, steps: Sequence[str]) -> None:
        """Each step tells of all changes up to it, so the latest one has them all."""
        try:
            changes = [load_json(change) for step in steps if (change := self._journal.get(_CONTEXT + step))]
        except ValueError as damage:
            raise ContextError(f"what the turn's finished steps have changed cannot be read: {damage}") from None
        latest = max(changes, key=lambda change: int(change["order"]), default=None)
        if latest is not None and latest["order"] > self._recalled_change:
            self._recalled_change = latest["order"]
            changed = {name: dump_json(value) for name, value in latest["fields"].items()}
            self._snapshot.restore_fields(ExecutionContext.current().run.context, changed)

    async def record(self, key: str, step: Recorded, *, urgent: bool) -> None:
        """Journal a finished step, with the context fields that it changed."""
        if self._has_ended:
            return
        entries = {key: step.result}
        if step.message:
            entries[_MESSAGE + key] = step.message
            self._journaled[step.message] = _MESSAGE + key
        run: Run[Any] = ExecutionContext.current().run
        changed = self._snapshot.changed_fields(run.context)
        if changed or self._context_entries:  # an earlier step's change may have been taken back
            self._context_entries += 1
            entries[_CONTEXT + key] = _dump_change(self._context_entries, changed)
        self._ledger.add_entries(entries)
        if urgent:
            await self._ledger.flush()
            if self._draining and key.startswith("completion"):
                self.release()
                await asyncio.sleep(0)

    def interruption(self) -> Cancel | Release | None:
        """Why the asyncio task was cancelled, once: a further cancellation is somebody else's."""
        why, self._interruption = self._interruption, None
        if why is not None and self._task is not None:
            self._task.uncancel()
        return why

    async def expect(self, key: str, tool: str) -> None:
        """Have the mailbox take a result for the step `key`: it may come before the run is parked."""
        self._ledger.add_entries({_EXPECTED + key: b"1"})
        await self._ledger.flush()

    async def spawn(self, batch_id: str, children: Sequence[Child]) -> None:
        """Store and queue them. Raises `RetryableError` if the mailbox cannot be reached."""
        if self._has_ended:
            raise FactorialError("the run has ended: it can spawn nothing any more")
        runs = [
            NewRun(
                child.task_id,
                child.agent.name,
                encode_messages(opening_messages(child.context)),
                encode_fields(child.context),
            )
            for child in children
        ]
        try:
            answer = await spawn(
                self._scripts,
                parent=self.task_id,
                token=self._token,
                batch_id=batch_id,
                children=runs,
            )
        except MailboxError as lost:
            raise RetryableError(f"the children could not be stored: {lost}") from None
        self._hear(answer)
        await asyncio.sleep(0)  # where a cancellation arrives

    async def settle(self, settlement: Settlement) -> Answer:
        """Commit what the turn came to."""
        await self._hear_the_rest()
        self._turn = settlement.context.turn - settlement.turn_done
        changes, output = self._changes(settlement)
        answer = await self._commit(self._as_commit(settlement, changes, output))
        awaited: Mapping[str, bytes] = {} if answer is None else answer.awaited
        if answer is not None and answer.action in _GOING_ON and (self._interruption or self._draining):
            answer = await self._commit(Commit(_as_action(self._interruption), turn_done=False))
        if answer is None or answer.action not in _GOING_ON or self._abandoned:
            return self._left(settlement, answer)
        if output:
            settlement.context.output = None  # a steer came: it was not the last word
        self._snapshot.stored(settlement.context, changes)
        messages = [decode_message(message) for message in answer.mail]
        settlement.context.messages.extend(messages)
        self._snapshot.stored_messages(messages)
        self._journal, self._journaled, self._context_entries, self._recalled_change = {}, {}, 0, 0
        self._attempt = 1
        return Resumed(awaited) if awaited else Proceed()

    def _left(self, settlement: Settlement, answer: Committed | None) -> Left:
        """The run is left: say so if it has ended here."""
        self._has_ended = True
        self._ledger.close()  # what a callback still does is no part of the run: nothing that is answered stops it
        match answer and answer.action:
            case Action.CANCEL:
                return Left(Cancel())
            case Action.COMPLETE | Action.FAIL if isinstance(settlement.step, Complete | Fail):
                return Left(settlement.step)
        return Left()

    async def _hear_the_rest(self) -> None:
        """The turn has ended. An interruption that was on its way comes too late for it, and is carried out by the
        commit; and what is under way must not come after the commit."""
        with self._uninterrupted():
            if self._interruption is not None:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
                self._draining = True
                self.interruption()
            with self._ledger.held():  # what waits goes with the commit: a turn is told of as completed by that alone
                await self._ledger.answered()

    def _changes(self, settlement: Settlement) -> tuple[Changes, dict[str, bytes]]:
        """What the turn changed, and apart from that the output, which counts only if the run ends with it."""
        if not settlement.turn_done:
            return Changes(), {}
        changes = self._snapshot.changes(settlement.context)
        if not isinstance(settlement.step, Complete) or "output" not in changes.fields:
            return changes, {}
        fields = dict(changes.fields)
        return replace(changes, fields=fields), {"output": fields.pop("output")}

    def _as_commit(self, settlement: Settlement, changes: Changes, output: Mapping[str, bytes]) -> Commit:
        action, delay, error = self._action(settlement)
        unsent = self._ledger.take()
        return Commit(
            action=action,
            turn_done=settlement.turn_done,
            messages=[self._by_reference(message, unsent.entries) for message in changes.messages],
            rewrite=changes.rewritten,
            fields=changes.fields,
            entries={} if settlement.turn_done else unsent.entries,
            events=unsent.events,
            doubtful=unsent.doubtful,
            doubtful_events=unsent.doubtful_events,
            delay=delay,
            error=error,
            final_fields=output,
            final_events=[encode_event(event) for event in settlement.endings],
            plan=encode_plan(settlement.step) if isinstance(settlement.step, Park) else b"",
            awaited=awaited_keys(settlement.step) if isinstance(settlement.step, Park) else {},
        )

    def _action(self, settlement: Settlement) -> tuple[Action, float, str]:
        match settlement.step:
            case Continue():
                return (Action.RELEASE if self._draining else Action.CONTINUE), 0.0, ""
            case Complete(is_last=is_last):
                return (Action.CONCLUDE if is_last else Action.COMPLETE), 0.0, ""
            case Park():
                return Action.PARK, 0.0, ""
            case Backoff(delay, error):
                return Action.BACKOFF, delay, describe(error)[:_ERROR_LIMIT]
            case Fail(error):
                return Action.FAIL, 0.0, describe(error)[:_ERROR_LIMIT]
            case Release():
                return Action.RELEASE, 0.0, ""
            case Cancel():
                return Action.CANCEL, 0.0, ""
            case never:
                assert_never(never)

    def _by_reference(self, message: bytes, unsent: Mapping[str, bytes]) -> bytes:
        """The message, or the name of the journal entry that holds it already: large results are sent once."""
        entry = self._journaled.get(message)
        return b"m" + message if entry is None or entry in unsent else b"j" + entry.encode()

    def _in_full(self, messages: Sequence[bytes]) -> list[bytes]:
        """The server has lost what it had in the journal, and we have it."""
        journaled = {b"j" + entry.encode(): b"m" + message for message, entry in self._journaled.items()}
        return [journaled[message] if message.startswith(b"j") else message for message in messages]

    async def _commit(self, work: Commit) -> Committed | None:
        with self._uninterrupted(), self._ledger.held():
            answer = await self._send(work)
        self._unanswered = None
        if isinstance(answer, Superseded):
            self._story.superseded()
            return None
        if answer.action not in _GOING_ON:
            self._tell(answer.action, work)
        if answer.action is Action.CANCEL:
            self._has_ended = True  # whoever asks for its end once more does not break off what is told of it
            with contextlib.suppress(MailboxError):  # what it has spawned; otherwise maintenance does it
                await cascade(self._scripts)
        self._token = self._ledger.token = self._token.next()
        self.due_in = _due_in(work) if answer.action in (Action.BACKOFF, Action.PARK) else None
        return answer

    async def _send(self, work: Commit) -> Committed | Superseded:
        self._unanswered = work
        answer = await commit(self._scripts, task_id=self.task_id, process=self._process, token=self._token, work=work)
        if isinstance(answer, EntryMissing):
            return await self._send(replace(work, messages=self._in_full(work.messages)))
        return answer

    def _tell(self, action: Action, work: Commit) -> None:
        """Log the step of the run's life that was just written."""
        match action:
            case Action.COMPLETE:
                self._story.completed(turns=self._turn + 1)
            case Action.PARK:
                self._story.parked(turn=self._turn, waiting_for=len(work.awaited))
            case Action.BACKOFF:
                self._story.retried(work.error, turn=self._turn, attempt=self._attempt, delay=work.delay)
            case Action.FAIL:
                self._story.failed(work.error, turn=self._turn, attempt=self._attempt)
            case Action.RELEASE:
                self._story.released(turn=self._turn)
            case Action.CANCEL:
                self._story.cancelled(turn=self._turn)
            case _:  # it goes on here, which is no step of its life
                pass

    def _hear(self, reply: Reply) -> None:
        """What the mailbox says to a step that was sent on its own."""
        match reply:
            case Noted(cancelled=True):
                self.cancel()
            case Noted():
                pass
            case Superseded():
                self.abandon()
            case MailboxError():
                self.release()
            case never:
                assert_never(never)


def _as_action(why: Cancel | Release | None) -> Action:
    return Action.CANCEL if isinstance(why, Cancel) else Action.RELEASE


def _due_in(work: Commit) -> float | None:
    if work.action is Action.BACKOFF:
        return work.delay
    return min((timeout for timeout in work.awaited.values() if timeout), default=None)


def _dump_change(order: int, changed: Mapping[str, bytes]) -> bytes:
    members = b",".join(to_json(name) + b":" + value for name, value in changed.items())
    return b'{"order":%d,"fields":{%s}}' % (order, members)
