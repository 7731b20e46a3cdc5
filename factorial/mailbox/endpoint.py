"""Where the server is, how a connection to it is opened, and what its refusals mean to us.

redis-py opens the connection: it knows URLs, TLS, AUTH, SELECT and unix sockets. From then on the socket is
a `Link` (link.py). Used by `Connection`, `BlockingConnection` and `Listener`.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.connection import Connection as RedisConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from factorial.config import RedisConfig
from factorial.errors import ConfigError, MailboxError, MailboxFullError, MailboxRefusedError, MailboxUnavailableError
from factorial.mailbox.link import Link
from factorial.redact import remember_password, shown_url

__all__ = ["Backoff", "Endpoint", "passes_by_itself", "translate"]

# Answers that say "not now": the server loads its data, runs a slow script, is a replica for the time of a
# failover, or cannot write to its disk.
_PASSING = (
    redis_errors.BusyLoadingError,
    redis_errors.ReadOnlyError,
    redis_errors.MasterDownError,
    redis_errors.ClusterDownError,
    redis_errors.TryAgainError,
)
_PASSING_WORDS = ("BUSY ", "MISCONF ", "UNBLOCKED ")

# What a URL may say in its query that belongs to redis-py's pools and clients, not to one connection.
_NOT_FOR_ONE_CONNECTION = ("max_connections", "timeout")


def passes_by_itself(error: Exception) -> bool:
    """Whether the server says that it will do what was asked, but not now."""
    return isinstance(error, _PASSING) or str(error).startswith(_PASSING_WORDS)


def translate(error: Exception, shown: str) -> Exception:
    """A server's refusal as one of our errors. What a script answers (NOSCRIPT and its own errors) stays as it is."""
    match error:
        case redis_errors.AuthenticationError() | redis_errors.NoPermissionError():
            advice = "check the user name and password in the URL, and what the user may do (ACL)"
            said = str(error).rstrip(".")
            return MailboxRefusedError(f"{shown} refuses us: {said}; {advice}")
        case redis_errors.OutOfMemoryError():
            advice = "remove ended tasks, or give it more (CONFIG SET maxmemory)"
            return MailboxFullError(f"{shown} is out of memory, nothing was stored: {error}; {advice}")
        case redis_errors.ConnectionError() | redis_errors.TimeoutError():
            return MailboxUnavailableError(f"{shown} does not answer: {error}")
        case _ if passes_by_itself(error):
            return MailboxUnavailableError(f"{shown} cannot serve us now: {error}")
    return error


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The server of one `RedisConfig`."""

    url: str = field(repr=False)
    timeout: float
    shown: str

    @classmethod
    def of(cls, config: RedisConfig) -> "Endpoint":
        """The endpoint that `config` names. Raises `ConfigError` if the URL cannot be one."""
        url = config.resolved_url
        if url.startswith("embedded:"):
            raise ConfigError(f"{url}: an embedded server is started first (factorial.mailbox.embedded.resolve)")
        remember_password(url)
        endpoint = cls(url, config.timeout, shown_url(url))
        endpoint._new_connection()
        return endpoint

    async def connect(self, on_reply: Callable[[Any], None], on_lost: Callable[[], None]) -> Link:
        """Open a link. Raises `MailboxUnavailableError`, or `MailboxRefusedError` if trying again is no use."""
        connection = self._new_connection()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py annotates it in part
        except redis_errors.RedisError as failure:
            raise self._explain(failure) from None
        return Link(connection, on_reply, on_lost)

    def _new_connection(self) -> AbstractConnection:
        try:
            arguments: dict[str, Any] = dict(parse_url(self.url))
            kind = arguments.pop("connection_class", RedisConnection)
            for name in _NOT_FOR_ONE_CONNECTION:
                arguments.pop(name, None)
            arguments |= {
                "protocol": 2,
                "decode_responses": False,
                "socket_timeout": self.timeout,
                "socket_connect_timeout": self.timeout,
                "retry": Retry(NoBackoff(), 0),
            }
            connection: AbstractConnection = kind(**arguments)
        except (ValueError, TypeError, redis_errors.RedisError) as invalid:
            # A TypeError tells of an unknown option; its text names it, and no value.
            raise ConfigError(f"redis url {self.shown}: {invalid}") from None
        return connection

    def _explain(self, failure: redis_errors.RedisError) -> MailboxError:
        # Over a unix socket, redis-py wraps what the server said into a ConnectionError.
        said = failure.__cause__ if isinstance(failure.__cause__, redis_errors.RedisError) else failure
        error = translate(said, self.shown)
        if not isinstance(error, MailboxError):
            return MailboxRefusedError(f"{self.shown} refuses us: {error}")
        if self._nobody_listens(said.__context__):
            advice = (
                "nothing listens there: start a Redis (>= 7.0) or Valkey, name another with redis.url or REDIS_URL, "
                "or use embedded:DIR, which starts one for you"
            )
            return MailboxUnavailableError(f"{self.shown}: {advice}")
        return error

    def _nobody_listens(self, cause: BaseException | None) -> bool:
        if isinstance(cause, FileNotFoundError):  # with TLS, that may be a certificate's file
            return self.url.startswith("unix:")
        # A name with two addresses (localhost) fails with one plain OSError for both.
        return isinstance(cause, ConnectionRefusedError) or "Connect call failed" in str(cause)


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
