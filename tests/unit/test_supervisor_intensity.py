"""How many restarts are too many, and how long to pause. Pure; properties by hypothesis."""

from hypothesis import given
from hypothesis import strategies as st

from factorial.supervisor.rules.intensity import RestartWindow, restart_delay


def test_the_window_slides() -> None:
    window = RestartWindow(period=10)
    assert [window.add(now) for now in (0, 4, 10, 11, 14.5)] == [1, 2, 3, 3, 3]
    assert window.count(30) == 0


@given(st.lists(st.integers(0, 30), max_size=30), st.integers(1, 20))
def test_the_window_counts_what_is_within_the_period(steps: list[int], period: int) -> None:
    window, times, now = RestartWindow(period), [], 0
    for step in steps:
        now += step
        times.append(now)
        assert window.add(now) == sum(now - then <= period for then in times)


def delay(nth: int, jitter: float = 1.0, intensity: int = 5, period: float = 1000.0) -> float:
    return restart_delay(nth, base=0.5, longest=10.0, intensity=intensity, period=period, jitter=jitter)


def test_the_first_restart_is_immediate_and_each_further_pause_doubles() -> None:
    assert [delay(nth) for nth in range(1, 8)] == [0, 0.5, 1, 2, 4, 8, 10]
    assert delay(100_000) == 10


def test_jitter_takes_up_to_half_of_a_pause() -> None:
    assert (delay(3, jitter=0.0), delay(3, jitter=0.5), delay(3, jitter=1.0)) == (0.5, 0.75, 1.0)


@given(st.integers(0, 100), st.floats(0.1, 1000), st.floats(0, 1))
def test_pauses_never_keep_a_crash_loop_below_the_intensity(intensity: int, period: float, jitter: float) -> None:
    pauses = sum(delay(nth, jitter, intensity, period) for nth in range(1, intensity + 2))
    assert pauses <= period / 2 * 1.001
