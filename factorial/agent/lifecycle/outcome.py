"""`Outcome`: what a turn leads to. A closed union: `match` on it, and close with `assert_never`.

The activation asks its host for an outcome, and the host answers with the one that it carried out. A steer, a cancel or
a drain may have changed it: a `Complete` over unread steering is carried out as `Continue`. Only `Continue` keeps the
run in its activation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "AwaitedCall", "Backoff", "Cancel", "Complete", "Continue", "Defer", "Fail", "Outcome", "Park", "Release",
    "turn_is_done",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Continue:
    """The run goes on here: with another turn; with the same one after a `Backoff`; or, if `awaits` is not empty, with
    the second half of a turn that was to be parked."""

    awaits: Mapping[str, bytes] = field(default_factory=dict)
    """What the turn would have been parked for, with the results: all of them had arrived."""


@dataclass(frozen=True, slots=True)
class Complete:
    """The run has its output. `is_last`: no further turn is allowed, so unread steering cannot lead to one."""

    output: Any
    is_last: bool = False
    finish_reason: str | None = None
    """Why the model's last answer ended."""


@dataclass(frozen=True, slots=True)
class AwaitedCall:
    """A tool call of a turn that is parked. All calls of the turn are listed, in the model's order. What the agent's
    own `run_turn` awaits comes after them."""

    tool_call_id: str
    message: dict[str, Any] | None = None
    """What answers the call, if that is known. It is held back until the other calls are answered."""
    children: tuple[str, ...] | None = None
    """The tasks whose ends the call awaits; None: it awaits a result from outside."""
    shown: str | None = None
    """What the model sees before the results of the children."""
    timeout: float = 0.0
    """Seconds after which the run stops waiting for the call; 0: never."""
    is_own: bool = False
    """Whether the agent's own `run_turn` awaits this, and no pending tool call of the turn does. Children that it
    awaits have no `tool_call_id`."""


@dataclass(frozen=True, slots=True)
class Park:
    """The turn awaits results from outside, or children. No process holds the task meanwhile."""

    calls: tuple[AwaitedCall, ...]


@dataclass(frozen=True, slots=True)
class Backoff:
    """The turn failed. It is tried again after `delay` seconds, and one retry is spent."""

    delay: float
    error: BaseException


@dataclass(frozen=True, slots=True)
class Defer:
    """The turn needs something that is away and not at fault: a provider, or code that can read the task. It is tried
    again after `delay` seconds. No retry is spent, and no process holds the task meanwhile."""

    delay: float
    error: BaseException
    is_first: bool = True
    """Whether the task was not deferred before, since its last finished step: then the deferral is announced."""


@dataclass(frozen=True, slots=True)
class Release:
    """The task goes back to the queue. No retry is spent."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The run ends as failed."""

    error: BaseException
    turn_done: bool = False
    """Whether the last turn ran to its end, so that its messages and changes are kept."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """The run ends as cancelled."""


Outcome = Continue | Complete | Park | Backoff | Defer | Release | Fail | Cancel


def turn_is_done(outcome: Outcome) -> bool:
    """Whether the turn ran to its end. Its messages and changes are kept then; otherwise its recorded steps are."""
    return isinstance(outcome, Continue | Complete | Park) or (isinstance(outcome, Fail) and outcome.turn_done)
