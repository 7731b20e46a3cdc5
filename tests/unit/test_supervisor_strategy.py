"""The rules of OTP's supervisor, each by name, and random histories against a small model of them. Pure."""

import signal
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factorial.supervisor.rules.spec import AutoShutdown, ChildSpec, ExitReason, Restart, Strategy, SupervisorFlags
from factorial.supervisor.rules.strategy import (
    Decision,
    Finish,
    GiveUp,
    LeaveEnded,
    RestartChildren,
    Supervision,
    classify,
    signal_name,
)

NORMAL, SHUTDOWN, ABNORMAL = ExitReason.NORMAL, ExitReason.SHUTDOWN, ExitReason.ABNORMAL
PERMANENT, TRANSIENT, TEMPORARY = Restart.PERMANENT, Restart.TRANSIENT, Restart.TEMPORARY


def child(id: str, restart: Restart = PERMANENT, significant: bool = False) -> ChildSpec:
    return ChildSpec(id=id, target="m:f", restart=restart, significant=significant)


def running(
    strategy: Strategy = Strategy.ONE_FOR_ONE,
    children: Iterable[ChildSpec] = (child("a"), child("b"), child("c")),
    intensity: int = 10,
    period: float = 5,
    auto_shutdown: AutoShutdown = AutoShutdown.NEVER,
) -> Supervision:
    flags = SupervisorFlags(strategy=strategy, intensity=intensity, period=period, auto_shutdown=auto_shutdown)
    rules = Supervision(flags, children, jitter=lambda: 1.0)
    for child_id in rules.start_order:
        rules.started(child_id)
    return rules


def is_restart(decision: Decision) -> bool:
    return isinstance(decision, RestartChildren)


@pytest.mark.parametrize(
    ("restart", "reason", "again"),
    [
        (PERMANENT, NORMAL, True), (PERMANENT, SHUTDOWN, True), (PERMANENT, ABNORMAL, True),
        (TRANSIENT, NORMAL, False), (TRANSIENT, SHUTDOWN, False), (TRANSIENT, ABNORMAL, True),
        (TEMPORARY, NORMAL, False), (TEMPORARY, SHUTDOWN, False), (TEMPORARY, ABNORMAL, False),
    ],
)  # fmt: skip
def test_restart_types(restart: Restart, reason: ExitReason, again: bool) -> None:
    rules = running(children=[child("a", restart)])
    assert is_restart(rules.ended("a", reason, now=0)) is again


@pytest.mark.parametrize(
    ("strategy", "terminate", "start"),
    [
        (Strategy.ONE_FOR_ONE, (), ("b",)),
        (Strategy.ONE_FOR_ALL, ("c", "a"), ("a", "b", "c")),
        (Strategy.REST_FOR_ONE, ("c",), ("b", "c")),
    ],
)
def test_strategies_terminate_in_reverse_and_start_in_order(
    strategy: Strategy, terminate: tuple[str, ...], start: tuple[str, ...]
) -> None:
    assert running(strategy).ended("b", ABNORMAL, now=0) == RestartChildren(terminate, start)


def test_a_temporary_sibling_is_terminated_with_the_group_and_not_started_again() -> None:
    rules = running(Strategy.ONE_FOR_ALL, [child("a"), child("b", TEMPORARY)])
    assert rules.ended("a", ABNORMAL, now=0) == RestartChildren(("b",), ("a",))
    assert rules.start_order == ("a",)


def test_a_transient_sibling_that_had_ended_normally_starts_again_with_the_group() -> None:
    rules = running(Strategy.ONE_FOR_ALL, [child("a"), child("b", TRANSIENT)])
    assert rules.ended("b", NORMAL, now=0) == LeaveEnded()
    assert rules.ended("a", ABNORMAL, now=0) == RestartChildren((), ("a", "b"))


def test_gives_up_when_the_count_exceeds_the_intensity_within_the_period() -> None:
    rules = running(intensity=2, period=5)
    for now in (0, 1):
        assert is_restart(rules.ended("a", ABNORMAL, now))
        rules.started("a")
    assert rules.ended("a", ABNORMAL, now=5) == GiveUp(3)


def test_restarts_that_are_older_than_the_period_do_not_count() -> None:
    rules = running(intensity=2, period=5)
    for now in (0, 1, 5.1, 6.2, 10.2):
        assert is_restart(rules.ended("a", ABNORMAL, now))
        rules.started("a")


def test_intensity_0_allows_no_restart() -> None:
    assert running(intensity=0).ended("a", ABNORMAL, now=0) == GiveUp(1)


def test_the_intensity_is_the_supervisors_and_not_each_childs() -> None:
    rules = running(intensity=1)
    assert is_restart(rules.ended("a", ABNORMAL, now=0))
    assert rules.ended("b", ABNORMAL, now=0) == GiveUp(2)


def test_a_group_restart_counts_once() -> None:
    rules = running(Strategy.ONE_FOR_ALL, intensity=1)
    assert is_restart(rules.ended("a", ABNORMAL, now=0))


def test_a_failed_attempt_counts_and_the_attempt_is_repeated() -> None:
    rules = running(intensity=2)
    assert is_restart(rules.ended("a", ABNORMAL, now=0))
    assert rules.start_failed("a", now=0) == RestartChildren((), ("a",), delay=0.2)
    assert rules.start_failed("a", now=0) == GiveUp(3)


def test_a_failed_attempt_within_a_group_continues_from_the_child_that_failed() -> None:
    rules = running(Strategy.REST_FOR_ONE)
    rules.ended("a", ABNORMAL, now=0)
    rules.started("a")
    assert rules.start_failed("b", now=0) == RestartChildren((), ("b", "c"))
    rules = running(Strategy.ONE_FOR_ALL)
    rules.ended("a", ABNORMAL, now=0)
    rules.started("a")
    assert rules.start_failed("b", now=0) == RestartChildren(("a",), ("a", "b", "c"))


def test_pauses_grow_for_the_child_that_dies_repeatedly_and_for_no_other() -> None:
    rules = running(period=60)
    delays = []
    for child_id in ("a", "a", "a", "b"):
        decision = rules.ended(child_id, ABNORMAL, now=0)
        assert isinstance(decision, RestartChildren)
        delays.append(decision.delay)
        rules.started(child_id)
    assert delays == [0, 0.2, 0.4, 0]


@pytest.mark.parametrize("when", [AutoShutdown.ANY_SIGNIFICANT, AutoShutdown.ALL_SIGNIFICANT])
def test_auto_shutdown_follows_significant_children_that_end_by_themselves(when: AutoShutdown) -> None:
    children = [child("a", TRANSIENT, True), child("b", TEMPORARY, True), child("c", TRANSIENT), child("d")]
    rules = running(children=children, auto_shutdown=when)
    assert rules.ended("c", NORMAL, now=0) == LeaveEnded(), "it is not significant"
    assert is_restart(rules.ended("a", ABNORMAL, now=0)), "it is started again"
    rules.started("a")
    first = rules.ended("b", ABNORMAL, now=0)
    assert first == (Finish() if when is AutoShutdown.ANY_SIGNIFICANT else LeaveEnded())
    assert rules.ended("a", NORMAL, now=0) == Finish()


@pytest.mark.parametrize("when", [AutoShutdown.ANY_SIGNIFICANT, AutoShutdown.ALL_SIGNIFICANT])
def test_auto_shutdown_counts_only_children_that_ended_by_themselves(when: AutoShutdown) -> None:
    """A significant child that was terminated with its group, or by an operator, did not end by itself."""
    children = [child("a"), child("b", TEMPORARY, True), child("c", TRANSIENT, True)]
    rules = running(Strategy.ONE_FOR_ALL, children, auto_shutdown=when)
    assert rules.ended("a", ABNORMAL, now=0) == RestartChildren(("c", "b"), ("a", "c"))
    rules.started("a")
    rules.suspend("c")
    assert rules.ended("a", ABNORMAL, now=9) == RestartChildren((), ("a",))


def test_a_significant_child_that_is_being_restarted_keeps_the_supervisor_alive() -> None:
    children = [child("a", TRANSIENT, True), child("b", TRANSIENT, True)]
    rules = running(children=children, auto_shutdown=AutoShutdown.ALL_SIGNIFICANT)
    assert is_restart(rules.ended("a", ABNORMAL, now=0))
    assert rules.ended("b", NORMAL, now=0) == LeaveEnded()


def test_a_suspended_child_stays_suspended_when_its_group_is_restarted() -> None:
    rules = running(Strategy.ONE_FOR_ALL)
    rules.suspend("b")
    assert rules.ended("a", ABNORMAL, now=0) == RestartChildren(("c",), ("a", "c"))


def test_a_suspended_significant_child_keeps_the_supervisor_alive() -> None:
    children = [child("a", TRANSIENT, True), child("b", TRANSIENT, True)]
    rules = running(children=children, auto_shutdown=AutoShutdown.ALL_SIGNIFICANT)
    rules.suspend("a")
    assert rules.ended("b", NORMAL, now=0) == LeaveEnded()


def test_new_flags_reset_the_count_of_restarts_and_equal_ones_do_not() -> None:
    rules = running(intensity=1)
    assert is_restart(rules.ended("a", ABNORMAL, now=0))
    rules.flags = SupervisorFlags(intensity=1, period=5)
    assert rules.restarts(0) == rules.restarts_of("a", 0) == 1
    rules.flags = SupervisorFlags(intensity=1, period=6)
    assert rules.restarts(0) == rules.restarts_of("a", 0) == 0
    assert is_restart(rules.ended("a", ABNORMAL, now=0))


def test_a_revised_spec_applies_from_the_next_exit_on_and_the_order_can_change() -> None:
    rules = running(Strategy.REST_FOR_ONE)
    rules.revise(child("b", TEMPORARY))
    rules.reorder(["c", "a"])
    assert rules.start_order == ("c", "a", "b")
    assert rules.ended("b", ABNORMAL, now=0) == LeaveEnded()
    assert rules.ended("c", ABNORMAL, now=0) == RestartChildren(("a",), ("c", "a"))


@pytest.mark.parametrize(
    ("exitcode", "asked_with", "reason"),
    [
        (0, None, NORMAL), (1, None, ABNORMAL), (-9, None, ABNORMAL), (-15, None, ABNORMAL), (None, None, ABNORMAL),
        (0, signal.SIGTERM, SHUTDOWN), (-15, signal.SIGTERM, SHUTDOWN), (-9, signal.SIGTERM, ABNORMAL),
        (1, signal.SIGTERM, ABNORMAL), (-9, signal.SIGKILL, SHUTDOWN),
    ],
)  # fmt: skip
def test_exit_classification(exitcode: int | None, asked_with: signal.Signals | None, reason: ExitReason) -> None:
    assert classify(exitcode, asked_with) is reason


def test_signals_by_name() -> None:
    assert [signal_name(code) for code in (None, 0, 3, -9, -15, -36)] == [
        None, None, None, "SIGKILL", "SIGTERM", "signal 36",
    ]  # fmt: skip


class Model:
    """A second, naive implementation of the rules: it looks everything up in the history."""

    def __init__(self, strategy: Strategy, restarts: list[Restart], intensity: int, period: int) -> None:
        self.strategy, self.intensity, self.period = strategy, intensity, period
        self.kinds = {f"c{number}": kind for number, kind in enumerate(restarts)}
        self.alive = list(self.kinds)
        self.history: list[int] = []

    def expect(self, child_id: str, again: bool, now: int) -> str | tuple[list[str], list[str]]:
        """The children to terminate and to start, or "leave" or "give up"."""
        if not again:
            if self.kinds[child_id] is TEMPORARY:
                del self.kinds[child_id]
            return "leave"
        self.history.append(now)
        if len([then for then in self.history if then >= now - self.period]) > self.intensity:
            return "give up"
        ids = list(self.kinds)
        group = {
            Strategy.ONE_FOR_ONE: [child_id],
            Strategy.ONE_FOR_ALL: ids,
            Strategy.REST_FOR_ONE: ids[ids.index(child_id) :],
        }[self.strategy]
        terminate = [each for each in group[::-1] if each in self.alive]
        for each in terminate:
            self.alive.remove(each)
            if self.kinds[each] is TEMPORARY:
                del self.kinds[each]
        return terminate, [each for each in group if each in self.kinds]


def shown(decision: Decision) -> str | tuple[list[str], list[str]]:
    match decision:
        case LeaveEnded():
            return "leave"
        case GiveUp():
            return "give up"
        case RestartChildren():
            return list(decision.terminate), list(decision.start)
        case Finish():
            return "finish"


EXITS = st.tuples(st.integers(0, 9), st.sampled_from([NORMAL, ABNORMAL]), st.integers(0, 4), st.integers(0, 12))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([Strategy.ONE_FOR_ONE, Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE]),
    st.lists(st.sampled_from(Restart), min_size=1, max_size=5),
    st.integers(0, 6),
    st.integers(1, 10),
    st.lists(EXITS, max_size=20),
)
def test_random_histories_follow_the_model(
    strategy: Strategy,
    restarts: list[Restart],
    intensity: int,
    period: int,
    exits: list[tuple[int, ExitReason, int, int]],
) -> None:
    """Each exit selects a running child, a reason, the seconds since the last exit, and the start that fails."""
    model = Model(strategy, restarts, intensity, period)
    rules = running(strategy, [child(id, kind) for id, kind in model.kinds.items()], intensity, period)
    now = 0
    for choice, reason, pause, failing in exits:
        if not model.alive:
            return
        now += pause
        child_id = model.alive[choice % len(model.alive)]
        model.alive.remove(child_id)
        again = model.kinds[child_id] is PERMANENT or (model.kinds[child_id] is TRANSIENT and reason is ABNORMAL)
        expected = model.expect(child_id, again, now)
        decision = rules.ended(child_id, reason, now)
        while True:
            assert shown(decision) == expected
            if isinstance(expected, str):
                break
            failed = start(rules, model, expected[1], failing)
            if failed is None:
                assert all(each in model.alive for each, kind in model.kinds.items() if kind is PERMANENT)
                break
            failing = 99
            expected = model.expect(failed, True, now)
            decision = rules.start_failed(failed, now)
        if expected == "give up":
            return


def start(rules: Supervision, model: Model, ids: list[str], failing: int) -> str | None:
    """Start `ids` in order; return the one whose start fails."""
    for number, child_id in enumerate(ids):
        if number == failing:
            return child_id
        rules.started(child_id)
        model.alive = [each for each in model.kinds if each in model.alive or each == child_id]
    return None


CRASHES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=40)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 3), st.integers(0, 3), st.integers(1, 8), st.integers(1, 8), st.sampled_from(Restart), CRASHES)
def test_nested_supervisors_follow_the_model(
    below: int, above: int, period_below: int, period_above: int, restart: Restart, crashes: list[tuple[int, int]]
) -> None:
    """Three runners under a root. A runner that gives up counts as one restart of the root, and starts with an empty
    history. A runner that is not permanent stays ended, because giving up is a shutdown."""
    names = ["x", "y", "z"]
    root = running(children=[child(name, restart) for name in names], intensity=above, period=period_above)
    runners = {name: running(intensity=below, period=period_below) for name in names}
    history: dict[str, list[int]] = {name: [] for name in names}
    given_up: list[int] = []
    now = 0
    for choice, pause in crashes:
        now += pause
        name = names[choice]
        if name not in runners:
            continue
        decision = runners[name].ended("a", ABNORMAL, now)
        history[name].append(now)
        too_many = len([then for then in history[name] if now - then <= period_below]) > below
        assert isinstance(decision, GiveUp) == too_many
        if not too_many:
            runners[name].started("a")
            continue
        del runners[name]
        decision = root.ended(name, SHUTDOWN, now)
        if restart is not PERMANENT:
            assert decision == LeaveEnded()
            continue
        given_up.append(now)
        assert isinstance(decision, GiveUp) == (len([then for then in given_up if now - then <= period_above]) > above)
        if isinstance(decision, GiveUp):
            return
        assert (decision.terminate, decision.start) == ((), (name,))  # type: ignore[union-attr]
        root.started(name)
        runners[name] = running(intensity=below, period=period_below)
        history[name].clear()
