"""What to do when a child has ended: the rules of OTP's supervisor, as a state machine without processes.

`Supervision` is told what happened and at which value of a monotonic clock, and answers with a decision for
`tree` to carry out. What OTP's rules do not say is marked as an extension.
"""

import random
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto

from factorial.supervisor.intensity import RestartWindow, restart_delay
from factorial.supervisor.spec import (
    AutoShutdown,
    ChildSpec,
    ExitReason,
    Restart,
    Strategy,
    SupervisorFlags,
    check_specs,
)

__all__ = ["Decision", "Finish", "GiveUp", "LeaveEnded", "RestartChildren", "Supervision", "classify", "signal_name"]


@dataclass(frozen=True, slots=True)
class LeaveEnded:
    """The child stays ended."""


@dataclass(frozen=True, slots=True)
class RestartChildren:
    """Terminate these in this order, wait `delay` seconds (extension), then start these in this order."""

    terminate: tuple[str, ...]
    start: tuple[str, ...]
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Finish:
    """The significant children have ended: shut the supervisor down, as asked by `auto_shutdown`."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """There were more than `intensity` restarts within `period`: shut the supervisor down as failed."""

    restarts: int


Decision = LeaveEnded | RestartChildren | Finish | GiveUp


class _State(Enum):
    NOT_STARTED = auto()
    RUNNING = auto()
    RESTARTING = auto()
    ENDED = auto()


class Supervision:
    """The children of one supervisor, in the order in which they start, and the rules for their ends.

    A group restart counts once, and so does a failed attempt to restart. On shutdown the
    children are terminated in the reverse of `start_order`.
    """

    def __init__(
        self, flags: SupervisorFlags, specs: Iterable[ChildSpec] = (), jitter: Callable[[], float] = random.random
    ) -> None:
        self.flags = flags
        self._jitter = jitter
        self._specs: dict[str, ChildSpec] = {}
        self._states: dict[str, _State] = {}
        self._restarts = RestartWindow(flags.period)
        self._restarts_of: dict[str, RestartWindow] = {}
        for spec in specs:
            self.add(spec)

    def add(self, spec: ChildSpec) -> None:
        """A further child, which comes last in the order. Raises `ConfigError` if it does not fit the others."""
        check_specs(self.flags, [*self._specs.values(), spec])
        self._specs[spec.id] = spec
        self._states[spec.id] = _State.NOT_STARTED

    def remove(self, child_id: str) -> None:
        """Forget a child."""
        del self._specs[child_id], self._states[child_id]
        self._restarts_of.pop(child_id, None)

    def spec(self, child_id: str) -> ChildSpec:
        """The specification of a child."""
        return self._specs[child_id]

    @property
    def start_order(self) -> tuple[str, ...]:
        """All children, in the order in which they start."""
        return tuple(self._specs)

    def started(self, child_id: str) -> None:
        """The child is up and ready."""
        self._states[child_id] = _State.RUNNING

    def ended(self, child_id: str, reason: ExitReason, now: float) -> Decision:
        """The child has ended without having been told to."""
        spec = self._specs[child_id]
        if self._is_restarted(spec, reason):
            return self._restart(child_id, now)
        self._settle(spec)
        return Finish() if spec.significant and self._is_finished() else LeaveEnded()

    def start_failed(self, child_id: str, now: float) -> Decision:
        """An attempt to restart the child has failed: it is tried again, and counts."""
        return self._restart(child_id, now)

    def _is_restarted(self, spec: ChildSpec, reason: ExitReason) -> bool:
        match spec.restart:
            case Restart.PERMANENT:
                return True
            case Restart.TRANSIENT:
                return reason is ExitReason.ABNORMAL
            case Restart.TEMPORARY:
                return False

    def _restart(self, child_id: str, now: float) -> RestartChildren | GiveUp:
        self._states[child_id] = _State.RESTARTING
        restarts = self._restarts.add(now)
        if restarts > self.flags.intensity:
            return GiveUp(restarts)
        terminate = tuple(other for other in reversed(self._concerned(child_id)) if self._is_up(other))
        for other in terminate:
            if self._specs[other].restart is Restart.TEMPORARY:
                self.remove(other)
        start = self._concerned(child_id)
        for other in start:
            self._states[other] = _State.RESTARTING
        return RestartChildren(terminate, start, self._delay(child_id, now))

    def _concerned(self, child_id: str) -> tuple[str, ...]:
        """The child and whoever starts anew with it, in the order in which they start.

        Siblings that had ended normally start anew with the group, as in OTP.
        """
        ids = self.start_order
        match self.flags.strategy:
            case Strategy.ONE_FOR_ONE | Strategy.SIMPLE_ONE_FOR_ONE:
                return (child_id,)
            case Strategy.ONE_FOR_ALL:
                return ids
            case Strategy.REST_FOR_ONE:
                return ids[ids.index(child_id) :]

    def _is_up(self, child_id: str) -> bool:
        return self._states[child_id] is _State.RUNNING

    def _delay(self, child_id: str, now: float) -> float:
        nth = self._restarts_of.setdefault(child_id, RestartWindow(self.flags.period)).add(now)
        return restart_delay(
            nth, base=self.flags.backoff, longest=self.flags.max_backoff,
            intensity=self.flags.intensity, period=self.flags.period, jitter=self._jitter(),
        )  # fmt: skip

    def _settle(self, spec: ChildSpec) -> None:
        """The child has ended for good: a temporary one is forgotten, and so is an instance of a simple supervisor."""
        if spec.restart is Restart.TEMPORARY or self.flags.strategy is Strategy.SIMPLE_ONE_FOR_ONE:
            self.remove(spec.id)
        else:
            self._states[spec.id] = _State.ENDED

    def _is_finished(self) -> bool:
        """Whether the end of a significant child, which has just been noted, ends the supervisor."""
        if self.flags.auto_shutdown is AutoShutdown.ANY_SIGNIFICANT:
            return True
        alive = (_State.RUNNING, _State.RESTARTING)
        return not any(spec.significant and self._states[spec.id] in alive for spec in self._specs.values())


def classify(exitcode: int | None, asked_with: signal.Signals | None) -> ExitReason:
    """Why a process ended. `exitcode`: minus the signal's number if one ended it, `None` if nobody knows.
    `asked_with`: the signal with which we told it to end, if we did.

    0 is normal; 0, or that signal, after we told it to is shutdown; anything else is abnormal.
    """
    if asked_with is not None and exitcode in (0, -asked_with):
        return ExitReason.SHUTDOWN
    return ExitReason.NORMAL if exitcode == 0 else ExitReason.ABNORMAL


def signal_name(exitcode: int | None) -> str | None:
    """The name of the signal that ended the process, if one did."""
    if exitcode is None or exitcode >= 0:
        return None
    try:
        return signal.Signals(-exitcode).name
    except ValueError:
        return f"signal {-exitcode}"
