"""Outcomes as commits: the action that a commit asks for, and the outcome that was carried out."""

from typing import assert_never

from factorial.agent.lifecycle.outcome import Backoff, Cancel, Complete, Continue, Fail, Outcome, Park, Release
from factorial.mailbox.operations.commit import Action, Commit
from factorial.telemetry.task_log import TaskLog

__all__ = ["action_of", "carried_out", "due_in", "log_commit"]


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


def due_in(work: Commit) -> float | None:
    """The seconds after which the run is due again that backs off, or is parked with a deadline."""
    if work.action is Action.BACKOFF:
        return work.delay
    return min((timeout for timeout in work.awaited.values() if timeout), default=None)


def log_commit(log: TaskLog, action: Action, work: Commit, *, turn: int, attempt: int) -> None:
    """Log the step of the run's life that was written. That it goes on in its activation is not one."""
    match action:
        case Action.COMPLETE:
            log.completed(turns=turn + 1)
        case Action.PARK:
            log.parked(turn=turn, awaits=len(work.awaited))
        case Action.BACKOFF:
            log.retried(work.error, turn=turn, attempt=attempt, delay=work.delay)
        case Action.FAIL:
            log.failed(work.error, turn=turn, attempt=attempt)
        case Action.RELEASE:
            log.released(turn=turn)
        case Action.CANCEL:
            log.cancelled(turn=turn)
