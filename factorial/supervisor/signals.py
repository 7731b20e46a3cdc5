"""The supervisor's own signals: SIGTERM and SIGINT once is graceful, twice is now; SIGHUP reloads, SIGUSR1 dumps.

A SIGHUP that comes because our terminal has gone is no wish to reload: somebody has closed the window, and that is a
request to stop. `nohup` has SIGHUP ignored, and so it stays.
"""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["StopRequests", "stop_requests"]

_SAME_REQUEST_SECONDS = 0.3
"""Signals this close together are one request: a Ctrl-C reaches us and also the program that started us, which may
pass it on."""


@dataclass(slots=True)
class StopRequests:
    """What we were asked for. Whoever does what `reload` and `dump` ask for clears them."""

    graceful: asyncio.Event = field(default_factory=asyncio.Event)
    now: asyncio.Event = field(default_factory=asyncio.Event)
    reload: asyncio.Event = field(default_factory=asyncio.Event)
    """Read the configuration again."""
    dump: asyncio.Event = field(default_factory=asyncio.Event)
    """Write all stacks and the tree to standard error."""
    _first_at: float | None = None

    def request(self) -> None:
        """Note a signal to stop. The second one means now; that somebody had ordered a stop before does not count."""
        if self._first_at is None:
            self._first_at = time.monotonic()
            self.graceful.set()
        elif time.monotonic() - self._first_at > _SAME_REQUEST_SECONDS:
            self.now.set()


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Take the signals as requests, within a running event loop; afterwards the handlers are as before.

    Outside of the main thread nobody can take signals: there, the caller sets the events.
    """
    requests = StopRequests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    had_terminal = _has_terminal()

    def hang_up() -> None:
        if had_terminal and not _has_terminal():
            requests.request()
        else:
            requests.reload.set()

    handlers: dict[signal.Signals, Callable[[], None]] = {
        signal.SIGTERM: requests.request,
        signal.SIGINT: requests.request,
        signal.SIGUSR1: requests.dump.set,
    }
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        handlers[signal.SIGHUP] = hang_up
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield requests
    finally:
        for number, previous in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, previous)


def _has_terminal() -> bool:
    """Whether a terminal controls us."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
