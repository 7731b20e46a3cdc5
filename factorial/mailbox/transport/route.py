"""Finds the server that has the namespace: the one in the URL, a node of a cluster, or the sentinels' primary.

The search runs each time a connection is opened. So after a lost connection, or an error that another server has the
namespace (`address.is_wrong_server`), reconnecting is enough.

All keys of a namespace share one hash tag. On a cluster they are in one slot, and one node has them all.
"""

from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection

from factorial.errors import MailboxError, MailboxRefusedError, MailboxUnavailableError
from factorial.mailbox.transport.address import Address, Node, is_wrong_server

__all__ = ["Route", "route_to"]


class Route:
    """How to find the server. This class is for a unix socket, which leads to one server that is not in a cluster."""

    def __init__(self, address: Address) -> None:
        self.url: str = address.url_of(address.nodes[0] if address.nodes else None)
        """The URL of the server that was found last, for redis-py. It contains the password."""
        self.in_cluster = False
        """Whether that server is a node of a cluster."""
        self._is_standalone = False
        self._address = address

    def invalidate(self) -> None:
        """Search for the server again at the next `open`: another one may have the namespace now."""
        self._is_standalone = False

    async def open(self) -> AbstractConnection:
        """A connection to the server that accepts the namespace's writes now.

        Raises `MailboxUnavailableError`, or `MailboxRefusedError` if another attempt would not help.
        """
        return await self._address.open(None)


def route_to(url: str, timeout: float, key: str) -> Route:
    """The route to the server that has `key`. Raises `ConfigError` if the URL is invalid."""
    address = Address(url, timeout)
    if not address.nodes:
        return Route(address)
    if address.topology == "sentinel":
        return _Sentinels(address, Address(url, timeout, for_sentinels=True))
    return _Nodes(address, key)


class _Nodes(Route):
    """One server, or the nodes of a cluster.

    One round trip asks a node whether it has our key, and which nodes it knows. It replies MOVED if another node has
    the key. The search asks every node that was ever reported, because the nodes in the URL may be gone. A standalone
    server is asked once only, not at each reconnection.
    """

    def __init__(self, address: Address, key: str) -> None:
        super().__init__(address)
        self._key = key
        self._known = list(address.nodes)
        """The most promising first."""

    async def open(self) -> AbstractConnection:
        if self._is_standalone:
            return await self._address.open(self._known[0])
        asked: list[Node] = []
        failures: list[MailboxError] = []
        while left := [node for node in self._known if node not in asked]:
            node = left[0]
            asked.append(node)
            try:
                connection = await self._address.open(node)
                if await self._has_our_key(connection, node):
                    self.url = self._address.url_of(node)
                    return connection
            except (MailboxUnavailableError, MailboxRefusedError) as failure:
                failures.append(failure)
                self._known.remove(node)
                self._known.append(node)
        if asked == self._address.nodes[:1] and failures:  # there is only one node, so its own error says most
            raise failures[0]
        _raise_if_all_refuse(failures)
        reasons = "; ".join(map(str, failures)) or "each of them names another one"
        raise MailboxUnavailableError(
            f"{self._address.shown}: none of {len(asked)} nodes serves the namespace now: {reasons}"
        )

    async def _has_our_key(self, connection: AbstractConnection, node: Node) -> bool:
        """Whether `node` has our key. If not, the connection is closed, and the node that has it is asked next."""
        try:
            has_it, slots = await _ask(connection, ("EXISTS", self._key), ("CLUSTER", "SLOTS"))
        except redis_errors.RedisError as failure:
            await connection.disconnect()
            raise self._address.explain(failure, node) from None
        self.in_cluster = isinstance(slots, list)
        if isinstance(slots, list):
            nodes = [_node_of(entry, node) for span in slots for entry in span[2:]]
            self._known = list(dict.fromkeys([*self._known, *filter(None, nodes)]))
        elif "cluster support disabled" in str(slots):
            self._is_standalone = len(self._address.nodes) == 1 and not self._address.topology
            if self._is_standalone:
                return True
            await connection.disconnect()
            raise MailboxRefusedError(
                f"{self._address.shown}: {node[0]}:{node[1]} is not a node of a cluster: name one server only, or, for "
                "a primary and its replicas, their sentinels (redis+sentinel://)"
            )
        if not isinstance(has_it, Exception) or not is_wrong_server(has_it):
            return True  # the first command will raise any other error
        await connection.disconnect()
        if not isinstance(has_it, redis_errors.MovedError):
            raise self._address.explain(has_it, node)
        better = (has_it.host or node[0], has_it.port)
        self._known = [better, *(known for known in self._known if known != better)]
        return False


class _Sentinels(Route):
    """Sentinels, which report the primary's address.

    `redis.asyncio.sentinel` is not used: it puts passwords into its error messages, and it does not ask another
    sentinel if the server that the first one names is not a primary any more.
    """

    def __init__(self, address: Address, of_sentinels: Address) -> None:
        super().__init__(address)
        self._of_sentinels = of_sentinels
        self._sentinels = list(address.nodes)

    async def open(self) -> AbstractConnection:
        failures: list[MailboxError] = []
        for sentinel in tuple(self._sentinels):
            try:
                primary = await self._primary(sentinel)
                connection = await self._address.open(primary)
                await self._check_role(connection, primary)
            except (MailboxUnavailableError, MailboxRefusedError) as failure:
                failures.append(failure)
                self._sentinels.remove(sentinel)
                self._sentinels.append(sentinel)
            else:
                self.url = self._address.url_of(primary)
                return connection
        _raise_if_all_refuse(failures)
        reasons = "; ".join(dict.fromkeys(map(str, failures)))
        raise MailboxUnavailableError(f"{self._address.shown}: no primary was found through the sentinels: {reasons}")

    async def _primary(self, sentinel: Node) -> Node:
        """The primary's address, as reported by this sentinel."""
        service = self._address.service
        connection = await self._of_sentinels.open(sentinel)
        try:
            (answer,) = await _ask(connection, ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service))
        except redis_errors.RedisError as failure:
            raise self._of_sentinels.explain(failure, sentinel) from None
        finally:
            await connection.disconnect()
        place = f"{sentinel[0]}:{sentinel[1]}"
        match answer:
            case [bytes(host), bytes(port)]:
                return host.decode(), int(port)
            case redis_errors.NoPermissionError():
                raise self._of_sentinels.explain(answer, sentinel)
            case Exception():
                raise MailboxRefusedError(f"{self._address.shown}: {place} is not a sentinel: {answer}")
        raise MailboxUnavailableError(f"{place} knows no primary called {service!r}")

    async def _check_role(self, connection: AbstractConnection, primary: Node) -> None:
        """Raise if the server is a replica. After a failover, a sentinel may still report the former primary."""
        try:
            (role,) = await _ask(connection, ("ROLE",))
        except redis_errors.RedisError as failure:
            await connection.disconnect()
            raise self._address.explain(failure, primary) from None
        if isinstance(role, list) and role[0] != b"master":
            await connection.disconnect()
            raise MailboxUnavailableError(f"{primary[0]}:{primary[1]} is a replica")


def _raise_if_all_refuse(failures: list[MailboxError]) -> None:
    """Raise a refusal only if every server refused. Otherwise another attempt may succeed."""
    if failures and all(isinstance(failure, MailboxRefusedError) for failure in failures):
        raise failures[0]


async def _ask(connection: AbstractConnection, *commands: tuple[str, ...]) -> list[Any]:
    """The replies to `commands`; an error reply is one, too. Raises redis-py's errors if the connection fails."""
    await connection.send_packed_command(connection.pack_commands(commands))
    answers: list[Any] = []
    for _ in commands:
        try:
            answers.append(await connection.read_response())
        except redis_errors.ResponseError as refusal:
            answers.append(refusal)
    return answers


def _node_of(entry: list[Any], asked: Node) -> Node | None:
    """The address of a node from CLUSTER SLOTS. A node that does not know its own address is at the one we asked."""
    host, port = entry[:2]
    if host == b"?":  # the cluster wants host names to be used, and this node has none
        return None
    return (host.decode() if host else asked[0]), port
