"""Counts restarts, and computes the pauses between them. Pure: the value of the clock is passed in."""

from collections import deque

__all__ = ["RestartWindow", "restart_delay"]


class RestartWindow:
    """Counts restarts in a sliding window of `period` seconds on a monotonic clock (OTP's `add_restart`)."""

    def __init__(self, period: float) -> None:
        self._period = period
        self._times: deque[float] = deque()

    def add(self, now: float) -> int:
        """Count a restart at `now`. Returns the number of restarts in the window, including this one."""
        self._times.append(now)
        return self.count(now)

    def count(self, now: float) -> int:
        """The number of restarts in the last `period` seconds, both ends included."""
        while self._times and self._times[0] + self._period < now:
            self._times.popleft()
        return len(self._times)


def restart_delay(nth: int, *, base: float, longest: float, intensity: int, period: float, jitter: float) -> float:
    """Seconds to wait before the `nth` restart (from 1) of one child within the window.

    The first restart has no pause. The second waits for `base` seconds, and each further one twice as long as the one
    before, up to `longest`. A pause is multiplied by a factor between 0.5 and 1, which `jitter` (from 0 to 1) chooses.
    All pauses of a crash loop fit into half of the period, so waiting never keeps the loop from exceeding the
    intensity.
    """
    if nth <= 1:
        return 0.0
    limit = min(longest, period / 2 / (intensity + 1))
    # 2.0 ** 1024 overflows; 60 doublings are beyond any limit.
    return float(min(limit, base * 2.0 ** min(nth - 2, 60))) * (0.5 + jitter / 2)
