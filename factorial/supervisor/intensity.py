"""How many restarts are too many, and how long to pause between them. Pure: the clock's value is passed in."""

from collections import deque

__all__ = ["RestartWindow", "restart_delay"]


class RestartWindow:
    """Counts restarts in a sliding window of `period` seconds on a monotonic clock (OTP's `add_restart`)."""

    def __init__(self, period: float) -> None:
        self._period = period
        self._times: deque[float] = deque()

    def add(self, now: float) -> int:
        """Count a restart at `now`; return how many there are in the window with it."""
        self._times.append(now)
        return self.count(now)

    def count(self, now: float) -> int:
        """How many restarts there were in the last `period` seconds, both ends included."""
        while self._times and self._times[0] + self._period < now:
            self._times.popleft()
        return len(self._times)


def restart_delay(nth: int, *, base: float, longest: float, intensity: int, period: float, jitter: float) -> float:
    """Seconds to wait before the `nth` restart (from 1) of one child within the window.

    Nothing before the first; then `base`, doubled each time, up to `longest`, times a factor between 0.5 and 1
    that `jitter` (from 0 to 1) chooses. All pauses of a crash loop fit into half of the period, so that waiting
    never keeps it from exceeding the intensity.
    """
    if nth <= 1:
        return 0.0
    limit = min(longest, period / 2 / (intensity + 1))
    # 2.0 ** 1024 overflows; 60 doublings are beyond any limit.
    return float(min(limit, base * 2.0 ** min(nth - 2, 60))) * (0.5 + jitter / 2)
