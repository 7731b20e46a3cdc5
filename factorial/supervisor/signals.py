"""The supervisor's own signals: once is graceful, twice is now."""

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["StopRequests", "stop_requests"]

_SAME_REQUEST_SECONDS = 0.3
"""Signals this close together are one request: a Ctrl-C reaches us and also the program that started us, which may
pass it on."""


@dataclass(slots=True)
class StopRequests:
    """What we were asked for."""

    graceful: asyncio.Event = field(default_factory=asyncio.Event)
    now: asyncio.Event = field(default_factory=asyncio.Event)
    _first_at: float = 0.0

    def request(self) -> None:
        """Note a request to stop."""
        if not self.graceful.is_set():
            self._first_at = time.monotonic()
            self.graceful.set()
        elif time.monotonic() - self._first_at > _SAME_REQUEST_SECONDS:
            self.now.set()


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Take SIGTERM and SIGINT as requests, within a running event loop; afterwards the handlers are as before.

    Outside of the main thread nobody can take signals: there, the caller sets the events.
    """
    requests = StopRequests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        loop.add_signal_handler(number, requests.request)
    try:
        yield requests
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
