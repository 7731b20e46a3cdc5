"""Opens a connection to one address, as the URL says, and tells in our words why that cannot be done.

redis-py opens it: it knows TLS, AUTH, SELECT and unix sockets. Which address is the right one, `route.py` finds out.
"""

import difflib
import inspect
import re
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.connection import Connection as RedisConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from factorial._core.urls import ServerURL
from factorial.errors import ConfigError, MailboxError, MailboxFullError, MailboxRefusedError, MailboxUnavailableError

__all__ = ["Address", "Node", "is_elsewhere", "passes_by_itself", "translate"]

Node = tuple[str, int]
"""Host and port."""

# Answers that say "not now": the server loads its data, runs a slow script, is a replica for the time of a failover,
# moves our keys to another node of the cluster, misses its replicas, or cannot write to its disk.
_PASSING = (
    redis_errors.BusyLoadingError,
    redis_errors.ReadOnlyError,
    redis_errors.MasterDownError,
    redis_errors.ClusterDownError,
    redis_errors.TryAgainError,
    redis_errors.AskError,  # and MovedError, which is one
)
_PASSING_WORDS = ("BUSY ", "MISCONF ", "UNBLOCKED ", "NOREPLICAS ")

# Answers of a sentinel, or of a server that only looks like one of ours.
_NO_SERVER_OF_OURS = ("unknown command", "Only HELLO messages are accepted")

# Of these, the answers after which it is worth asking who serves us now.
_ELSEWHERE = (redis_errors.MovedError, redis_errors.ReadOnlyError, redis_errors.ClusterDownError)

# What a URL may say in its query that belongs to redis-py's pools and clients, not to one connection.
_NOT_FOR_ONE_CONNECTION = ("max_connections", "timeout")
_ANY_HOST = "any.invalid"


def passes_by_itself(error: Exception) -> bool:
    """Whether the server says that it will do what was asked, but not now, or that another one will.

    A slot that moves to another node of a cluster key by key (ASK) is waited for. Following it would be wrong: a
    script works on many keys, which would be in both places then. The server refuses each script from the move's
    beginning, since the one key that it declares is never there; so the namespace stands still, and is whole.
    """
    return isinstance(error, _PASSING) or str(error).startswith(_PASSING_WORDS)


def is_elsewhere(error: Exception) -> bool:
    """Whether the server says that it is the wrong one, at least for now."""
    return isinstance(error, _ELSEWHERE)


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
        case redis_errors.AskError():
            return MailboxUnavailableError(f"{shown} cannot serve us now: another node does, or will ({error})")
        case _ if passes_by_itself(error):
            return MailboxUnavailableError(f"{shown} cannot serve us now: {error}")
        case redis_errors.ResponseError() if str(error).startswith(_NO_SERVER_OF_OURS):
            said = str(error).partition(", with args")[0].rstrip(".")
            advice = "is it a Redis or Valkey? For sentinels, begin the URL with redis+sentinel://"
            return MailboxRefusedError(f"{shown} refuses us: {said}; {advice}")
        case redis_errors.ConnectionError() | redis_errors.TimeoutError():
            return MailboxUnavailableError(f"{shown} does not answer: {error}")
    return error


class Address:
    """The servers that a URL names, and how to connect to them or to others of their kind."""

    def __init__(self, url: str, timeout: float, *, for_sentinels: bool = False) -> None:
        """Raises `ConfigError` if the URL cannot be one."""
        try:
            parts = ServerURL.parse(url)
        except ValueError as invalid:
            raise ConfigError(f"redis url: {invalid}") from None
        self.shown = parts.shown
        self.topology = parts.topology
        default_port = 26379 if self.topology == "sentinel" else 6379
        self.nodes: list[Node] = []
        """Host and port of each; none if it is a unix socket."""
        if parts.scheme != "unix":
            hosts = [(unquote(host.strip("[]")), port) for host, port in parts.hosts]
            self.nodes = [(host or "localhost", port or default_port) for host, port in hosts]
        self.service = parts.path.split("/")[1] if self.topology == "sentinel" else ""
        """What sentinels call the primary."""
        self._url = _url_for_sentinels(parts) if for_sentinels else _url_of_one(parts)
        ours = {
            "protocol": 2,
            "decode_responses": False,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 0),
        }
        try:
            arguments: dict[str, Any] = dict(parse_url(self._url)) | ours
            self._kind: Any = arguments.pop("connection_class", RedisConnection)
            for name in _NOT_FOR_ONE_CONNECTION:
                arguments.pop(name, None)
            self._arguments = arguments
            self._new_connection(self.nodes[0] if self.nodes else None)
        except (ValueError, TypeError, redis_errors.RedisError) as invalid:
            raise ConfigError(f"redis url {self.shown}: {self._mistake(invalid)}") from None

    def url_of(self, node: Node | None) -> str:
        """The URL of `node` alone, or of the unix socket, with all that is secret: for redis-py."""
        if node is None:
            return self._url
        host = f"[{node[0]}]" if ":" in node[0] else quote(node[0])
        return self._url.replace(_ANY_HOST, f"{host}:{node[1]}", 1)

    async def open(self, node: Node | None) -> AbstractConnection:
        """Connect to `node`, or to the unix socket. Raises `MailboxUnavailableError`, and `MailboxRefusedError` if
        trying again is no use."""
        connection = self._new_connection(node)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py annotates it in part
        except redis_errors.RedisError as failure:
            raise self.explain(failure, node) from None
        return connection

    def explain(self, failure: Exception, node: Node | None) -> MailboxError:
        """Why `node` cannot be used, from what redis-py raised."""
        # Sentinels are named one by one: none of them is the server that the URL is about.
        is_all = node is None or (self.nodes == [node] and self.topology != "sentinel")
        place = self.shown if node is None or is_all else f"{node[0]}:{node[1]}"
        # Over a unix socket, redis-py wraps what the server said into a ConnectionError.
        said = failure.__cause__ if isinstance(failure.__cause__, redis_errors.RedisError) else failure
        error = translate(said, place)
        if not isinstance(error, MailboxError):
            return MailboxRefusedError(f"{place} refuses us: {error}{self._advice_on_database(said)}")
        if not self._nobody_listens(said.__context__, node):
            return error
        advice = "nothing listens there"
        if place == self.shown:
            advice += (
                ": start a Redis (>= 7.0) or Valkey, name another with redis.url or REDIS_URL, "
                "or use embedded:DIR, which starts one for you"
            )
        return MailboxUnavailableError(f"{place}: {advice}")

    def _new_connection(self, node: Node | None) -> AbstractConnection:
        place = {"host": node[0], "port": node[1]} if node is not None else {}
        connection: AbstractConnection = self._kind(**self._arguments | place)
        return connection

    def _mistake(self, invalid: Exception) -> str:
        """What redis-py makes of the URL, in words. Python's own about an unknown option has its name, and no value."""
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(invalid))
        if unknown is None:
            return str(invalid)
        known = {name for kind in self._kind.__mro__ for name in inspect.signature(kind.__init__).parameters}
        near = difflib.get_close_matches(unknown[1], {*known, "sentinel_username", "sentinel_password"}, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "it takes those of a connection of redis-py"
        return f"there is no option {unknown[1]!r}; {hint}"

    def _advice_on_database(self, said: Exception) -> str:
        of_cluster = "SELECT is not allowed" in str(said)
        if not of_cluster and "DB index is out of range" not in str(said):
            return ""
        if of_cluster or self.topology == "cluster" or len(self.nodes) > 1:
            return ": a cluster has no database but 0"
        return ": end the URL with the number of a database that it has, such as 0"

    def _nobody_listens(self, cause: BaseException | None, node: Node | None) -> bool:
        if isinstance(cause, FileNotFoundError):  # with TLS, that may be a certificate's file
            return node is None
        # A name with two addresses (localhost) fails with one plain OSError for both.
        return isinstance(cause, ConnectionRefusedError) or "Connect call failed" in str(cause)


def _url_of_one(parts: ServerURL) -> str:
    """The URL as redis-py reads it: of one host, and without what is said of sentinels."""
    credentials = f"{parts.user}:{parts.password}@" if parts.user or parts.password else ""
    host = "" if parts.scheme == "unix" else _ANY_HOST
    path = "/" + "".join(parts.path.split("/")[2:3]) if parts.topology == "sentinel" else parts.path
    options = [(name, value) for name, value in _options(parts) if not name.startswith("sentinel_")]
    return f"{_scheme(parts)}://{credentials}{host}{path}?{urlencode(options)}"


def _url_for_sentinels(parts: ServerURL) -> str:
    """The same for the sentinels, which have users and passwords of their own, and no databases."""
    options = [
        (name.removeprefix("sentinel_"), value)
        for name, value in _options(parts)
        if name in ("sentinel_username", "sentinel_password") or name.startswith("ssl_")
    ]
    return f"{_scheme(parts)}://{_ANY_HOST}?{urlencode(options)}"


def _scheme(parts: ServerURL) -> str:
    return parts.scheme.partition("+")[0]


def _options(parts: ServerURL) -> list[tuple[str, str]]:
    return parse_qsl(parts.query, keep_blank_values=True)
