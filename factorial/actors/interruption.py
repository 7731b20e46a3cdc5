"""`Interruption`: what was asked of an activation from outside, and whether it may be broken off for that now. Pure.

    cancel, release     break off what is being done; the outcome is `Cancel` or `Release`. The first one counts
    drain               release the task at the next step boundary; nothing is broken off
    abandon             another process holds the task: stop, and write nothing

A commit is never broken off: see `shielded`. What is asked meanwhile is found afterwards. Each of the three methods
that may break off returns whether the asyncio task is to be cancelled now.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from factorial.agent.lifecycle.outcome import Cancel, Release

__all__ = ["Interruption"]


class Interruption:
    """The state of one activation, as seen by what may interrupt it."""

    def __init__(self) -> None:
        self.wanted: Cancel | Release | None = None
        """What the activation is to end with, until `take` gives it."""
        self.is_abandoned: bool = False
        self.is_draining: bool = False
        self.has_ended: bool = False
        """The activation is over. What a callback still does is not part of it."""
        self._is_open = False

    def cancel(self) -> bool:
        """The run is to end as cancelled. A run that has ended cannot."""
        return not self.has_ended and self._want(Cancel())

    def release(self) -> bool:
        """The task is to be released now. A callback after the end is broken off, too."""
        return self._want(Release())

    def drain(self) -> None:
        """The task is to be released at the next step boundary."""
        self.is_draining = True

    def abandon(self) -> bool:
        """Another process holds the task. What a callback still does after the end goes on."""
        if self.has_ended:
            return False
        self.is_abandoned = True
        return self._is_open

    def _want(self, outcome: Cancel | Release) -> bool:
        if self.wanted is not None or self.is_abandoned:
            return False
        self.wanted = outcome
        return self._is_open

    def take(self) -> Cancel | Release | None:
        """What was asked for, once."""
        wanted, self.wanted = self.wanted, None
        return wanted

    def end(self) -> None:
        """The activation is over."""
        self.has_ended = True

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Within the block, what is done may be broken off. An asyncio task that is cancelled before its first step
        would never run, so it is not opened before that."""
        with self._with_open(True):
            yield

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Within the block, what is done is not broken off."""
        with self._with_open(False):
            yield

    @contextmanager
    def _with_open(self, is_open: bool) -> Iterator[None]:
        before, self._is_open = self._is_open, is_open
        try:
            yield
        finally:
            self._is_open = before
