"""What systemd is told about us, by the protocol of sd_notify(3): a datagram to the socket that NOTIFY_SOCKET names.

Of our own, and not a library: it is one message to one socket, and a dependency would be larger than what it does.
Without systemd, or when its socket is gone, nothing happens: nobody to tell is no reason to stop.
"""

import asyncio
import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress

__all__ = ["ServiceManager"]

_PATIENCE_SECONDS = 1.0
"""How long a full socket may hold us up."""


class ServiceManager:
    """The service manager that started us, if there is one.

    Make it once, before there are children: it takes the variables of the protocol out of `environment`, because a
    child that had them would speak for us.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        timeout = environment.pop("WATCHDOG_USEC", "")
        watched = environment.pop("WATCHDOG_PID", "")
        # "@" stands for the zero byte with which an abstract socket's name begins.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        is_ours = watched in ("", str(os.getpid()))
        self.watchdog: float | None = int(timeout) / 1e6 if is_ours and timeout.isdecimal() and int(timeout) else None
        """Seconds without a `WATCHDOG=1` after which the manager restarts us; `None` if it does not watch us."""

    def ready(self, status: str = "") -> None:
        """All is started, or reloaded."""
        self._tell("READY=1", f"STATUS={' '.join(status.split())}")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` says that it is done, also if it was refused."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reloading")

    def stopping(self) -> None:
        """We have begun to stop."""
        self._tell("STOPPING=1", "STATUS=stopping")

    async def reassure(self) -> None:
        """Say twice in the watchdog's time that the calling event loop turns, until cancelled.

        Returns at once if nobody watches.
        """
        while self.watchdog is not None:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog / 2)

    def _tell(self, *assignments: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as messenger:
            messenger.settimeout(_PATIENCE_SECONDS)
            messenger.sendto("\n".join(assignments).encode(), self._address)
