"""Outcomes as commits: the action that a commit asks for, and the outcome that was carried out."""

from collections.abc import Mapping
from dataclasses import replace
from typing import assert_never

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
from factorial.context import AgentContext
from factorial.mailbox.operations.commit import Action, Commit
from factorial.telemetry.task_log import TaskLog

__all__ = ["action_of", "carried_out", "changes_of", "due_in", "log_commit"]


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


def due_in(work: Commit) -> float | None:
    """The seconds after which the run is due again that backs off, or is parked with a deadline."""
    if work.action in (Action.BACKOFF, Action.DEFER):
        return work.delay
    return min((timeout for timeout in work.awaits.values() if timeout), default=None)


def log_commit(log: TaskLog, action: Action, work: Commit, *, turn: int, attempt: int) -> None:
    """Log the step of the run's life that was written. That it goes on in its activation is not one."""
    match action:
        case Action.COMPLETE:
            log.completed(turns=turn + 1)
        case Action.PARK:
            log.parked(turn=turn, awaits=len(work.awaits))
        case Action.BACKOFF:
            log.retried(work.error, turn=turn, attempt=attempt, delay=work.delay)
        case Action.DEFER:
            task_log.deferred(work.error, turn=turn, delay=work.delay, is_first=not was_deferred)
        case Action.FAIL:
            log.failed(work.error, turn=turn, attempt=attempt)
        case Action.RELEASE:
            log.released(turn=turn)
        case Action.CANCEL:
            log.cancelled(turn=turn)
