"""`Interruption`, as a state machine that Hypothesis drives. Pure."""

from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from factorial.actors.interruption import Interruption
from factorial.agent.lifecycle.outcome import Cancel, Release


class Machine(RuleBasedStateMachine):
    """An activation that is asked for things at any moment, and what must be true of the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.interruption = Interruption()
        self.blocks: list[object] = []
        self.is_open = [False]
        self.first: Cancel | Release | None = None

    @rule()
    def open(self) -> None:
        self._enter(self.interruption.opened(), True)

    @rule()
    def shield(self) -> None:
        self._enter(self.interruption.shielded(), False)

    def _enter(self, block: object, is_open: bool) -> None:
        block.__enter__()  # type: ignore[attr-defined]
        self.blocks.append(block)
        self.is_open.append(is_open)

    @precondition(lambda self: self.blocks)
    @rule()
    def leave_block(self) -> None:
        self.blocks.pop().__exit__(None, None, None)  # type: ignore[attr-defined]
        self.is_open.pop()

    @rule()
    def cancel(self) -> None:
        counts = self.first is None and not self.interruption.is_abandoned and not self.interruption.has_ended
        self._asked(self.interruption.cancel(), counts, Cancel())

    @rule()
    def release(self) -> None:
        counts = self.first is None and not self.interruption.is_abandoned
        self._asked(self.interruption.release(), counts, Release())

    def _asked(self, break_off: bool, counts: bool, wanted: Cancel | Release) -> None:
        assert break_off is (counts and self.is_open[-1]), "only what counts breaks off, and never within a shield"
        if counts:
            self.first = wanted

    @rule()
    def drain(self) -> None:
        wanted = self.interruption.wanted
        self.interruption.drain()
        assert self.interruption.is_draining and self.interruption.wanted is wanted, "a drain breaks nothing off"

    @rule()
    def abandon(self) -> None:
        ended = self.interruption.has_ended
        assert self.interruption.abandon() is (not ended and self.is_open[-1])
        assert self.interruption.is_abandoned or ended, "what has ended cannot be lost"

    @rule()
    def end(self) -> None:
        self.interruption.end()

    @rule()
    def take(self) -> None:
        assert self.interruption.take() == self.first, "the first request counts"
        assert self.interruption.take() is None, "and is given once"
        self.first = None

    @invariant()
    def what_was_asked_first_is_wanted(self) -> None:
        assert self.interruption.wanted == self.first


def test_whatever_is_asked_for_at_whatever_moment() -> None:
    run_state_machine_as_test(Machine, settings=settings(max_examples=200, stateful_step_count=30, deadline=None))
