"""The server of a `RedisConfig`: opens a connection to it, wherever it is at that moment.

redis-py opens the connection (`address.py`) to the server that has the namespace (`route.py`). From then on the socket
is a `Link` (link.py). Used by `Connection`, `BlockingConnection` and `Listener`.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any

from factorial._core.redact import remember_password, shown_url
from factorial.config import RedisConfig
from factorial.errors import ConfigError
from factorial.mailbox.keys import Keys
from factorial.mailbox.transport.link import Link
from factorial.mailbox.transport.route import Route, route_to

__all__ = ["Backoff", "Endpoint"]


class Endpoint:
    """The server of one `RedisConfig`."""

    def __init__(self, route: Route, timeout: float, shown: str) -> None:
        self.route = route
        """How it is found."""
        self.timeout = timeout
        """Seconds to wait for an answer."""
        self.shown = shown
        """Its URL, as people may see it."""

    @classmethod
    def of(cls, config: RedisConfig) -> "Endpoint":
        """The endpoint that `config` names. Raises `ConfigError` if the URL cannot be one."""
        url = config.resolved_url
        if url.startswith("embedded:"):
            raise ConfigError(f"{url}: an embedded server is started first (factorial.mailbox.embedded.share.resolve)")
        remember_password(url)
        return cls(route_to(url, config.timeout, Keys(config.namespace).layout), config.timeout, shown_url(url))

    async def connect(self, on_reply: Callable[[Any], None], on_lost: Callable[[], None]) -> Link:
        """Open a link. Raises `MailboxUnavailableError`, or `MailboxRefusedError` if trying again is no use."""
        return Link(await self.route.open(), on_reply, on_lost)


class Backoff:
    """Pauses between attempts to reconnect: none to speak of at first, then doubling up to a second, with jitter.

    The jitter keeps a thousand clients of a restarted server from coming back in the same instant.
    """

    def __init__(self, first: float = 0.02, longest: float = 1.0) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def reset(self) -> None:
        """The connection has proved itself: begin anew."""
        self._next = self._first

    async def pause(self, at_most: float = float("inf")) -> None:
        """Wait for the next pause, or `at_most` so many seconds."""
        seconds = random.uniform(0.5, 1.0) * self._next
        self._next = min(self._next * 2, self._longest)
        await asyncio.sleep(max(0.0, min(seconds, at_most)))
