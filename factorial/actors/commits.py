"""Outcomes as commits: the action that a commit asks for, and the outcome that was carried out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, assert_never

from factorial.actors.journal import Journal
from factorial.actors.outbox import Pending
from factorial.agent.lifecycle.failure import describe, explain_failure, patience_with
from factorial.agent.lifecycle.outcome import (
    Backoff,
    Cancel,
    Complete,
    Continue,
    Defer,
    Fail,
    Outcome,
    Park,
    Release,
    turn_is_done,
)
from factorial.agent.lifecycle.snapshot import Changes, ContextSnapshot
from factorial.agent.lifecycle.waiting import awaited_keys, encode_plan
from factorial.config import AgentWorkerConfig
from factorial.context import AgentContext
from factorial.events import BaseEvent, EventType, QueueEvent, encode_event
from factorial.mailbox.operations.commit import Action, Commit
from factorial.telemetry.task_log import TaskLog

__all__ = [
    "Turn", "action_of", "carried_out", "changes_of", "commit_of", "commit_of_error", "due_in", "log_commit",
]  # fmt: skip

_ERROR_LIMIT = 2000
"""Characters of an error that are stored with the task."""


def action_of(outcome: Outcome | None) -> Action:
    """What the commit asks for."""
    match outcome:
        case Continue():
            return Action.CONTINUE
        case Complete(is_last=is_last):
            return Action.CONCLUDE if is_last else Action.COMPLETE
        case Park():
            return Action.PARK
        case Backoff():
            return Action.BACKOFF
        case Defer():
            return Action.DEFER
        case Release() | None:
            return Action.RELEASE
        case Fail():
            return Action.FAIL
        case Cancel():
            return Action.CANCEL
        case never:
            assert_never(never)


def carried_out(action: Action, wanted: Outcome) -> Outcome:
    """The outcome that ended the activation."""
    match action:
        case Action.CANCEL:
            return Cancel()
        case Action.RELEASE:
            return Release()
    return wanted


def changes_of(
    snapshot: ContextSnapshot, outcome: Outcome, context: AgentContext
) -> tuple[Changes, Mapping[str, bytes]]:
    """What the turn changed in the context; and separately the output, which counts only if the run ends with it."""
    if not turn_is_done(outcome):
        return Changes(), {}
    changes = snapshot.changes(context)
    if not isinstance(outcome, Complete) or "output" not in changes.fields:
        return changes, {}
    fields = dict(changes.fields)
    output = {"output": fields.pop("output")}
    return replace(changes, fields=fields), output


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn leaves behind, before it is known what becomes of it."""

    changes: Changes
    output: Mapping[str, bytes]
    unsent: Pending
    journal: Journal
    events: Sequence[BaseEvent]
    """Events that announce the outcome."""


def commit_of(outcome: Outcome, turn: Turn, *, is_draining: bool) -> Commit:
    """The commit that asks for `outcome`."""
    unsent, done = turn.unsent, turn_is_done(outcome)
    error = outcome.error if isinstance(outcome, Backoff | Defer | Fail) else None
    return Commit(
        action=Action.RELEASE if is_draining and outcome == Continue() else action_of(outcome),
        turn_done=done,
        messages=[turn.journal.by_reference(message, unsent.entries) for message in turn.changes.messages],
        rewrite=turn.changes.rewritten,
        fields=turn.changes.fields,
        entries={} if done else unsent.entries,
        events=unsent.events,
        unanswered=unsent.unanswered,
        unanswered_events=unsent.unanswered_events,
        delay=outcome.delay if isinstance(outcome, Backoff | Defer) else 0.0,
        error="" if error is None else describe(error)[:_ERROR_LIMIT],
        final_fields=turn.output,
        final_events=[encode_event(event) for event in turn.events],
        plan=encode_plan(outcome) if isinstance(outcome, Park) else b"",
        awaits=awaited_keys(outcome) if isinstance(outcome, Park) else {},
    )


def commit_of_error(outcome: Backoff | Defer | Fail, ids: Mapping[str, Any], policy: AgentWorkerConfig) -> Commit:
    """The commit for a run that could not begin a turn. `ids` are those that its events begin with."""
    error, text = outcome.error, describe(outcome.error)
    events: list[BaseEvent] = []
    match outcome:
        case Fail():
            explanation = explain_failure(ids["agent_name"], ids["task_id"], error)
            events.append(QueueEvent(EventType.RUN_FAILED, **ids, error=explanation))
        case Backoff():
            events.append(QueueEvent(EventType.TASK_FAILED, **ids, error=text))
            events.append(QueueEvent(EventType.TASK_RETRIED, **ids, data={"delay": round(outcome.delay, 3)}))
        case Defer(is_first=True):
            about = {"delay": round(outcome.delay, 3), "patience": patience_with(error, policy)}
            events.append(QueueEvent(EventType.TASK_DEFERRED, **ids, error=text, data=about))
    return Commit(
        action_of(outcome),
        turn_done=False,
        delay=0.0 if isinstance(outcome, Fail) else outcome.delay,
        error=text[:_ERROR_LIMIT],
        final_events=[encode_event(event) for event in events],
    )


def due_in(work: Commit) -> float | None:
    """The seconds after which the run is due again that backs off, or is parked with a deadline."""
    if work.action in (Action.BACKOFF, Action.DEFER):
        return work.delay
    return min((timeout for timeout in work.awaits.values() if timeout), default=None)


def log_commit(
    log: TaskLog, action: Action, work: Commit, *, turn: int, attempt: int, finish_reason: str | None = None
) -> None:
    """Log the step of the run's life that was written. That it goes on in its activation is not one."""
    match action:
        case Action.COMPLETE:
            log.completed(turns=turn + 1, finish_reason=finish_reason)
        case Action.PARK:
            log.parked(turn=turn, awaits=len(work.awaits))
        case Action.BACKOFF:
            log.retried(work.error, turn=turn, attempt=attempt, delay=work.delay)
        case Action.DEFER:
            log.deferred(work.error, turn=turn, delay=work.delay, is_first=bool(work.final_events))
        case Action.FAIL:
            log.failed(work.error, turn=turn, attempt=attempt)
        case Action.RELEASE:
            log.released(turn=turn)
        case Action.CANCEL:
            log.cancelled(turn=turn)
