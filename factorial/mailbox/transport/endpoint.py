"""The server of a `RedisConfig`, and how to open a link to it.

redis-py opens the connection (`address.py`) to the server that has the namespace (`route.py`). After that the socket
belongs to a `Link` (`link.py`). Used by `Connection`, `BlockingConnection` and `Listener`.
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
        """How to find the server."""
        self.timeout = timeout
        """Seconds to wait for a reply."""
        self.shown = shown
        """Its URL without the password."""

    @classmethod
    def of(cls, config: RedisConfig) -> "Endpoint":
        """The endpoint that `config` names. Raises `ConfigError` if the URL is invalid."""
        url = config.resolved_url
        if url.startswith("embedded:"):
            raise ConfigError(f"{url}: start the embedded server first, with factorial.mailbox.embedded.share.resolve")
        remember_password(url)
        return cls(route_to(url, config.timeout, Keys(config.namespace).layout), config.timeout, shown_url(url))

    async def connect(self, on_reply: Callable[[Any], None], on_lost: Callable[[], None]) -> Link:
        """Open a link. Raises `MailboxUnavailableError`, or `MailboxRefusedError` if another attempt would not help."""
        return Link(await self.route.open(), on_reply, on_lost)


class Backoff:
    """Pauses between attempts to reconnect, in seconds: they double from `first` to `longest`, with jitter.

    The jitter spreads the reconnections of many clients after a restart of the server.
    """

    def __init__(self, first: float = 0.02, longest: float = 1.0) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def reset(self) -> None:
        """Start again with the shortest pause: the connection works."""
        self._next = self._first

    async def pause(self, at_most: float = float("inf")) -> None:
        """Sleep for the next pause, but no longer than `at_most` seconds."""
        seconds = random.uniform(0.5, 1.0) * self._next
        self._next = min(self._next * 2, self._longest)
        await asyncio.sleep(max(0.0, min(seconds, at_most)))
