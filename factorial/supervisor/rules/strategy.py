"""What to do when a child has ended: the rules of OTP's supervisor, as a state machine without processes.

`Supervision` takes what happened, with the value of a monotonic clock, and returns a decision for `tree` to carry out.
What is not in OTP's rules is marked as an extension.
"""

import random
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto

from factorial.errors import ConfigError
from factorial.supervisor.rules.intensity import RestartWindow, restart_delay
from factorial.supervisor.rules.spec import (
    AutoShutdown,
    ExitReason,
    Restart,
    Spec,
    Strategy,
    SupervisorFlags,
    check_specs,
)

__all__ = [
    "ChildState", "Decision", "Finish", "GiveUp", "LeaveEnded", "RestartChildren", "Supervision", "classify",
    "signal_name",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class LeaveEnded:
    """The child stays ended."""


@dataclass(frozen=True, slots=True)
class RestartChildren:
    """Terminate the first ones in this order, wait `delay` seconds (extension), then start the others in this order."""

    terminate: tuple[str, ...]
    start: tuple[str, ...]
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Finish:
    """The significant children have ended: shut the supervisor down, as `auto_shutdown` says."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """There were more than `intensity` restarts within `period`: end the supervisor as failed."""

    restarts: int


Decision = LeaveEnded | RestartChildren | Finish | GiveUp


class ChildState(Enum):
    """The state of a child by the rules."""

    NOT_STARTED = auto()
    RUNNING = auto()
    RESTARTING = auto()
    SUSPENDED = auto()
    ENDED = auto()


class Supervision:
    """The children of one supervisor, in the order in which they start, and the rules for their ends.

    A group restart counts as one restart, and so does each failed attempt to restart.
    """

    def __init__(
        self, flags: SupervisorFlags, specs: Iterable[Spec] = (), jitter: Callable[[], float] = random.random
    ) -> None:
        self._flags = flags
        self._jitter = jitter
        self._specs: dict[str, Spec] = {}
        self._states: dict[str, ChildState] = {}
        self._restarts = RestartWindow(flags.period)
        self._restarts_of: dict[str, RestartWindow] = {}
        specs = tuple(specs)
        check_specs(flags, specs)
        for spec in specs:
            self.add(spec)

    @property
    def flags(self) -> SupervisorFlags:
        """How the children are treated. Setting it is an extension, and resets the count of restarts."""
        return self._flags

    @flags.setter
    def flags(self, flags: SupervisorFlags) -> None:
        if flags != self._flags:
            self._flags = flags
            self._restarts = RestartWindow(flags.period)
            self._restarts_of.clear()

    def add(self, spec: Spec) -> None:
        """Add a child, which comes last in the order. Raises `ConfigError` if its id is in use."""
        if spec.id in self._specs:
            raise ConfigError(f"there are two children with the id {spec.id!r}: ids must be unique")
        self._specs[spec.id] = spec
        self._states[spec.id] = ChildState.NOT_STARTED

    def remove(self, child_id: str) -> None:
        """Remove a child."""
        del self._specs[child_id], self._states[child_id]
        self._restarts_of.pop(child_id, None)

    def __contains__(self, child_id: str) -> bool:
        return child_id in self._specs

    def spec(self, child_id: str) -> Spec:
        """The specification of a child."""
        return self._specs[child_id]

    def revise(self, spec: Spec) -> None:
        """Extension: replace the specification of the child with this id."""
        self._specs[spec.id] = spec

    def reorder(self, child_ids: Iterable[str]) -> None:
        """Extension: change the start order. Children that are not named come last."""
        first = dict.fromkeys(child_id for child_id in child_ids if child_id in self._specs)
        self._specs = {child_id: self._specs[child_id] for child_id in {**first, **self._specs}}

    def state(self, child_id: str) -> ChildState:
        """The state of a child."""
        return self._states[child_id]

    def restarts(self, now: float) -> int:
        """The number of restarts within the period."""
        return self._restarts.count(now)

    def restarts_of(self, child_id: str, now: float) -> int:
        """The number of restarts within the period that this child has caused."""
        return self._restarts_of[child_id].count(now) if child_id in self._restarts_of else 0

    @property
    def start_order(self) -> tuple[str, ...]:
        """All children, in the order in which they start."""
        return tuple(self._specs)

    def started(self, child_id: str) -> None:
        """The child is ready."""
        self._states[child_id] = ChildState.RUNNING

    def stays_ended(self, child_id: str) -> None:
        """An operator's attempt to start a child that had ended has failed."""
        self._states[child_id] = ChildState.ENDED

    def suspend(self, child_id: str) -> None:
        """The child is terminated and kept (OTP's `terminate_child`) until it is `started` again.

        Unlike in OTP, a group restart does not start it, because an operator has suspended it.
        """
        self._states[child_id] = ChildState.SUSPENDED

    def ended(self, child_id: str, reason: ExitReason, now: float) -> Decision:
        """The child has ended without a request."""
        spec = self._specs[child_id]
        if self._is_restarted(spec, reason):
            return self._restart(child_id, now)
        self._leave_ended(spec)
        return Finish() if spec.significant and self._is_finished() else LeaveEnded()

    def start_failed(self, child_id: str, now: float) -> Decision:
        """An attempt to restart the child has failed. It counts, and is followed by another one."""
        return self._restart(child_id, now)

    def _is_restarted(self, spec: Spec, reason: ExitReason) -> bool:
        match spec.restart:
            case Restart.PERMANENT:
                return True
            case Restart.TRANSIENT:
                return reason is ExitReason.ABNORMAL
            case Restart.TEMPORARY:
                return False

    def _restart(self, child_id: str, now: float) -> RestartChildren | GiveUp:
        self._states[child_id] = ChildState.RESTARTING
        restarts = self._restarts.add(now)
        if restarts > self.flags.intensity:
            return GiveUp(restarts)
        terminate = tuple(other for other in reversed(self._concerned(child_id)) if self._is_up(other))
        for other in terminate:
            if self._specs[other].restart is Restart.TEMPORARY:
                self.remove(other)
        start = tuple(other for other in self._concerned(child_id) if self._states[other] is not ChildState.SUSPENDED)
        for other in start:
            self._states[other] = ChildState.RESTARTING
        return RestartChildren(terminate, start, self._delay(child_id, now))

    def _concerned(self, child_id: str) -> tuple[str, ...]:
        """The child and those that are restarted with it, in the order in which they start.

        Siblings that had ended normally are started with the group, as in OTP.
        """
        ids = self.start_order
        match self.flags.strategy:
            case Strategy.ONE_FOR_ONE:
                return (child_id,)
            case Strategy.ONE_FOR_ALL:
                return ids
            case Strategy.REST_FOR_ONE:
                return ids[ids.index(child_id) :]

    def _is_up(self, child_id: str) -> bool:
        return self._states[child_id] is ChildState.RUNNING

    def _delay(self, child_id: str, now: float) -> float:
        nth = self._restarts_of.setdefault(child_id, RestartWindow(self.flags.period)).add(now)
        return restart_delay(
            nth, base=self.flags.backoff, longest=self.flags.max_backoff,
            intensity=self.flags.intensity, period=self.flags.period, jitter=self._jitter(),
        )  # fmt: skip

    def _leave_ended(self, spec: Spec) -> None:
        """The child has ended for good. A temporary one is removed."""
        if spec.restart is Restart.TEMPORARY:
            self.remove(spec.id)
        else:
            self._states[spec.id] = ChildState.ENDED

    def _is_finished(self) -> bool:
        """Whether the supervisor ends because a significant child has just ended."""
        if self.flags.auto_shutdown is AutoShutdown.ANY_SIGNIFICANT:
            return True
        alive = (ChildState.RUNNING, ChildState.RESTARTING, ChildState.SUSPENDED)
        return not any(spec.significant and self._states[spec.id] in alive for spec in self._specs.values())


def classify(exitcode: int | None, asked_with: signal.Signals | None) -> ExitReason:
    """Why a process ended. `exitcode`: minus the signal's number if a signal ended it, `None` if it is unknown.
    `asked_with`: the signal with which the supervisor asked it to end, if it did.

    Exit code 0 is normal. Exit code 0 or an end by that signal, after the request, is a shutdown. Anything else is
    abnormal.
    """
    if asked_with is not None and exitcode in (0, -asked_with):
        return ExitReason.SHUTDOWN
    return ExitReason.NORMAL if exitcode == 0 else ExitReason.ABNORMAL


def signal_name(exitcode: int | None) -> str | None:
    """The name of the signal that ended the process, or None if it exited by itself."""
    if exitcode is None or exitcode >= 0:
        return None
    try:
        return signal.Signals(-exitcode).name
    except ValueError:
        return f"signal {-exitcode}"
