"""Reports the supervisor's state to systemd, by the protocol of sd_notify(3): datagrams to the socket NOTIFY_SOCKET.

This needs no library: it sends one message to one socket. Without systemd, or when its socket has gone, nothing is
sent and nothing fails.
"""

import asyncio
import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress

__all__ = ["ServiceManager"]

_SEND_TIMEOUT = 1.0
"""Seconds that a full socket may block the supervisor."""


class ServiceManager:
    """The service manager that started this process, if there is one.

    Create it once, before any child is started: it removes the variables of the protocol from `environment`, because a
    child that had them could report in the name of the supervisor.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        timeout = environment.pop("WATCHDOG_USEC", "")
        watched = environment.pop("WATCHDOG_PID", "")
        # "@" stands for the zero byte with which an abstract socket's name begins.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        is_watched = watched in ("", str(os.getpid()))
        self.watchdog: float | None = (
            int(timeout) / 1e6 if is_watched and timeout.isdecimal() and int(timeout) else None
        )
        """Seconds without a `WATCHDOG=1` after which the manager restarts this process. `None`: it does not watch."""

    def ready(self, status: str = "") -> None:
        """Report that everything is started, or reloaded."""
        self._send("READY=1", f"STATUS={' '.join(status.split())}")

    def reloading(self) -> None:
        """Report that the configuration is being read again. Call `ready` when that is done, also if it was refused."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reloading")

    def stopping(self) -> None:
        """Report that the supervisor is stopping."""
        self._send("STOPPING=1", "STATUS=stopping")

    async def keep_alive(self) -> None:
        """Report twice per watchdog interval that the event loop runs, until cancelled.

        Returns at once if the manager does not watch.
        """
        while self.watchdog is not None:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog / 2)

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.settimeout(_SEND_TIMEOUT)
            manager.sendto("\n".join(assignments).encode(), self._address)
