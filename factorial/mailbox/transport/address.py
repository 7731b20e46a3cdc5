"""Opens a connection to one server with the options of a URL, and translates what goes wrong into `MailboxError`.

redis-py opens the connection, because it implements TLS, AUTH, SELECT and unix sockets. `route.py` chooses the server.
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

__all__ = ["Address", "Node", "database_of", "is_temporary", "is_wrong_server", "translate"]

Node = tuple[str, int]
"""Host and port."""

# Errors that mean "not now": the server loads its data, runs a slow script, is a replica during a failover, moves our
# keys to another node of the cluster, has lost its replicas, or cannot write to its disk.
_TEMPORARY = (
    redis_errors.BusyLoadingError,
    redis_errors.ReadOnlyError,
    redis_errors.MasterDownError,
    redis_errors.ClusterDownError,
    redis_errors.TryAgainError,
    redis_errors.AskError,  # includes its subclass MovedError
)
_TEMPORARY_PREFIXES = ("BUSY ", "MISCONF ", "UNBLOCKED ", "NOREPLICAS ")

# Errors of a sentinel, or of a server that speaks the protocol but is not a Redis or Valkey.
_NOT_A_DATA_SERVER = ("unknown command", "Only HELLO messages are accepted")

# The temporary errors after which another server may have the keys.
_WRONG_SERVER = (redis_errors.MovedError, redis_errors.ReadOnlyError, redis_errors.ClusterDownError)

# Options in a URL's query that redis-py's pools and clients take, but a single connection does not.
_POOL_OPTIONS = ("max_connections", "timeout")
_ANY_HOST = "any.invalid"


def is_temporary(error: Exception) -> bool:
    """Whether the same command may succeed later, on this server or on another one.

    While a cluster moves a slot key by key (ASK), commands wait until the move is over. To follow the redirection would
    be wrong: a script uses many keys, and some of them would be on either node. The server refuses each script from the
    start of the move, because the one key that a script declares never exists. So nothing in the namespace changes
    during the move.
    """
    return isinstance(error, _TEMPORARY) or str(error).startswith(_TEMPORARY_PREFIXES)


def is_wrong_server(error: Exception) -> bool:
    """Whether the error means that another server has the keys, or takes writes, at least for now."""
    return isinstance(error, _WRONG_SERVER)


def translate(error: Exception, shown: str) -> Exception:
    """A server's refusal as a `MailboxError`. Errors of scripts and of wrong commands are returned unchanged.

    `shown`: the server's URL without its password.
    """
    match error:
        case redis_errors.AuthenticationError() | redis_errors.NoPermissionError():
            advice = "check the user name and password in the URL, and the permissions of the user (ACL)"
            reason = str(error).rstrip(".")
            return MailboxRefusedError(f"{shown} refused access: {reason}; {advice}")
        case redis_errors.OutOfMemoryError():
            advice = "remove ended tasks, or raise its limit (CONFIG SET maxmemory)"
            return MailboxFullError(f"{shown} is out of memory; nothing was stored: {error}; {advice}")
        case redis_errors.AskError():
            moved = f"the namespace is on another node, or is moving to one ({error})"
            return MailboxUnavailableError(f"{shown} cannot serve requests now: {moved}")
        case _ if is_temporary(error):
            return MailboxUnavailableError(f"{shown} cannot serve requests now: {error}")
        case redis_errors.ResponseError() if str(error).startswith(_NOT_A_DATA_SERVER):
            reason = str(error).partition(", with args")[0].rstrip(".")
            advice = "check that it is a Redis or Valkey; the URL of sentinels begins with redis+sentinel://"
            return MailboxRefusedError(f"{shown} refused access: {reason}; {advice}")
        case redis_errors.ConnectionError() | redis_errors.TimeoutError():
            return MailboxUnavailableError(f"{shown} does not answer: {error}")
    return error


class Address:
    """The servers that a URL names, and the options for connections to them and to other nodes of their cluster."""

    def __init__(self, url: str, timeout: float, *, for_sentinels: bool = False) -> None:
        """`timeout`: seconds to connect, and to wait for a reply. `for_sentinels`: use the sentinels' credentials.

        Raises `ConfigError` if the URL is invalid.
        """
        try:
            parts = ServerURL.parse(url)
        except ValueError as invalid:
            raise ConfigError(f"redis url: {invalid}") from None
        self.shown: str = parts.shown
        self.topology: str = parts.topology
        default_port = 26379 if self.topology == "sentinel" else 6379
        self.nodes: list[Node] = []
        """Host and port of each server. Empty for a unix socket."""
        if parts.scheme != "unix":
            hosts = [(unquote(host.strip("[]")), port) for host, port in parts.hosts]
            self.nodes = [(host or "localhost", port or default_port) for host, port in hosts]
        self.service: str = parts.path.split("/")[1] if self.topology == "sentinel" else ""
        """The name under which sentinels monitor the primary."""
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
            for name in _POOL_OPTIONS:
                arguments.pop(name, None)
            self.database: int = int(arguments.get("db") or 0)
            """The number of the database that connections select."""
            self._arguments = arguments
            self._new_connection(self.nodes[0] if self.nodes else None)
        except (ValueError, TypeError, redis_errors.RedisError) as invalid:
            raise ConfigError(f"redis url {self.shown}: {self._describe(invalid)}") from None

    def url_of(self, node: Node | None) -> str:
        """The URL of `node`, or of the unix socket, for redis-py. It contains the password."""
        if node is None:
            return self._url
        host = f"[{node[0]}]" if ":" in node[0] else quote(node[0])
        return self._url.replace(_ANY_HOST, f"{host}:{node[1]}", 1)

    async def open(self, node: Node | None) -> AbstractConnection:
        """Connect to `node`, or to the unix socket.

        Raises `MailboxUnavailableError`, or `MailboxRefusedError` if another attempt would not help.
        """
        connection = self._new_connection(node)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py annotates it partly
        except redis_errors.RedisError as failure:
            raise self.explain(failure, node) from None
        return connection

    def explain(self, failure: Exception, node: Node | None) -> MailboxError:
        """The error for the user, from the one that redis-py raised for `node`."""
        # A message about a sentinel names that sentinel: the URL stands for the primary.
        is_all = node is None or (self.nodes == [node] and self.topology != "sentinel")
        place = self.shown if node is None or is_all else f"{node[0]}:{node[1]}"
        # Over a unix socket, redis-py wraps the server's error into a ConnectionError.
        cause = failure.__cause__ if isinstance(failure.__cause__, redis_errors.RedisError) else failure
        error = translate(cause, place)
        if not isinstance(error, MailboxError):
            return MailboxRefusedError(f"{place} refused the connection: {error}{self._advice_on_database(cause)}")
        if not self._nothing_listens(cause.__context__, node):
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

    def _describe(self, invalid: Exception) -> str:
        """What is wrong with the URL. Python's message about an unknown option has its name, but not its value."""
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(invalid))
        if unknown is None:
            return str(invalid)
        known = {name for kind in self._kind.__mro__ for name in inspect.signature(kind.__init__).parameters}
        near = difflib.get_close_matches(unknown[1], {*known, "sentinel_username", "sentinel_password"}, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "the options are those of a redis-py connection"
        return f"there is no option {unknown[1]!r}; {hint}"

    def _advice_on_database(self, refusal: Exception) -> str:
        of_cluster = "SELECT is not allowed" in str(refusal)
        if not of_cluster and "DB index is out of range" not in str(refusal):
            return ""
        if of_cluster or self.topology == "cluster" or len(self.nodes) > 1:
            return ": a cluster has only database 0"
        return ": end the URL with the number of a database that exists, such as 0"

    def _nothing_listens(self, cause: BaseException | None, node: Node | None) -> bool:
        if isinstance(cause, FileNotFoundError):  # with TLS, a certificate's file may be missing
            return node is None
        # A name with two addresses (localhost) fails with one plain OSError for both.
        return isinstance(cause, ConnectionRefusedError) or "Connect call failed" in str(cause)


def database_of(url: str) -> int:
    """The number of the database that a connection to `url` uses. Raises `ConfigError` if the URL is invalid."""
    return 0 if url.startswith("embedded:") else Address(url, timeout=1.0).database


def _url_of_one(parts: ServerURL) -> str:
    """The URL as redis-py reads it: one host, and none of the options for sentinels."""
    credentials = f"{parts.user}:{parts.password}@" if parts.user or parts.password else ""
    host = "" if parts.scheme == "unix" else _ANY_HOST
    path = "/" + "".join(parts.path.split("/")[2:3]) if parts.topology == "sentinel" else parts.path
    options = [(name, value) for name, value in _options(parts) if not name.startswith("sentinel_")]
    return f"{_scheme(parts)}://{credentials}{host}{path}?{urlencode(options)}"


def _url_for_sentinels(parts: ServerURL) -> str:
    """The URL of a sentinel as redis-py reads it. Sentinels have their own users and passwords, and no databases."""
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
