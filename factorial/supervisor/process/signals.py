"""The supervisor's own signals. One SIGTERM or SIGINT stops gracefully, a second one stops now. SIGHUP reloads,
SIGUSR1 dumps.

A SIGHUP that arrives because the controlling terminal has gone is a request to stop, not to reload: the user has closed
the window. Under `nohup`, which ignores SIGHUP, it stays ignored.
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
"""Signals this close together are one request: a Ctrl-C reaches this process, and also the program that started it,
which may pass it on."""


@dataclass(slots=True)
class StopRequests:
    """What the supervisor was asked for. The code that reacts to `reload` or `dump` clears it."""

    graceful: asyncio.Event = field(default_factory=asyncio.Event)
    now: asyncio.Event = field(default_factory=asyncio.Event)
    reload: asyncio.Event = field(default_factory=asyncio.Event)
    """Read the configuration again."""
    dump: asyncio.Event = field(default_factory=asyncio.Event)
    """Write all stacks and the tree to standard error."""
    _first_at: float | None = None

    def request(self) -> None:
        """Record a signal to stop. A second signal means now. An order to stop does not count as the first signal."""
        if self._first_at is None:
            self._first_at = time.monotonic()
            self.graceful.set()
        elif time.monotonic() - self._first_at > _SAME_REQUEST_SECONDS:
            self.now.set()


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Turn signals into requests, within a running event loop. At the end the previous handlers are restored.

    Only the main thread can handle signals. In other threads the caller sets the events.
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
    """Whether this process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
