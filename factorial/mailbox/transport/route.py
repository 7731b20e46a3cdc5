"""Finds the server that keeps our namespace: the one that the URL names, a node of a cluster, or the primary that
sentinels know of. It is looked for each time a connection is opened, so whoever is told that the server is another one
now (`address.is_elsewhere`), or loses it, only has to connect again.

All keys of a namespace carry one hash tag, so on a cluster they are in one slot, and one node has them all.
"""

from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection

from factorial.errors import MailboxError, MailboxRefusedError, MailboxUnavailableError
from factorial.mailbox.transport.address import Address, Node, is_elsewhere

__all__ = ["Route", "route_to"]


class Route:
    """The way to the server. This one is to a unix socket: one server is behind it, and it is no node of a cluster."""

    def __init__(self, address: Address) -> None:
        self.url = address.url_of(address.nodes[0] if address.nodes else None)
        """The URL of the server that was found last, with all that is secret: for redis-py."""
        self.in_cluster = False
        """Whether that is a node of a cluster."""
        self._stands_alone = False
        self._address = address

    def doubt(self) -> None:
        """The server says that it is not the one (any more): look for it anew."""
        self._stands_alone = False

    async def open(self) -> AbstractConnection:
        """A connection to the server that takes our writes now.

        Raises `MailboxUnavailableError`, or `MailboxRefusedError` if trying again is no use.
        """
        return await self._address.open(None)


def route_to(url: str, timeout: float, key: str) -> Route:
    """The way to the server that keeps `key`. Raises `ConfigError` if the URL cannot be one."""
    address = Address(url, timeout)
    if not address.nodes:
        return Route(address)
    if address.topology == "sentinel":
        return _Sentinels(address, Address(url, timeout, for_sentinels=True))
    return _Nodes(address, key)


class _Nodes(Route):
    """One server, or the nodes of a cluster.

    A node is asked, in one round trip, whether it has our key and which nodes it knows. It answers with MOVED if
    another one has it. Every node that was ever heard of is asked before we give up: the URL may name one that is gone.
    A server that stands for itself is asked once, not each time that we connect again.
    """

    def __init__(self, address: Address, key: str) -> None:
        super().__init__(address)
        self._key = key
        self._known = list(address.nodes)
        """The most promising first."""

    async def open(self) -> AbstractConnection:
        if self._stands_alone:
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
        if asked == self._address.nodes[:1] and failures:  # one is named, and no other is known: its own words are best
            raise failures[0]
        _raise_if_all_refuse(failures)
        told = "; ".join(map(str, failures)) or "they name each other"
        raise MailboxUnavailableError(f"{self._address.shown}: none of {len(asked)} nodes serves us now: {told}")

    async def _has_our_key(self, connection: AbstractConnection, node: Node) -> bool:
        """Whether `node` serves us; if not, the connection is closed, and a better node comes next."""
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
            self._stands_alone = len(self._address.nodes) == 1 and not self._address.topology
            if self._stands_alone:
                return True
            await connection.disconnect()
            raise MailboxRefusedError(
                f"{self._address.shown}: {node[0]}:{node[1]} is no node of a cluster: name one server alone, or, for a "
                "primary and its replicas, their sentinels (redis+sentinel://)"
            )
        if not isinstance(has_it, Exception) or not is_elsewhere(has_it):
            return True  # other errors are for those who send commands
        await connection.disconnect()
        if not isinstance(has_it, redis_errors.MovedError):
            raise self._address.explain(has_it, node)
        better = (has_it.host or node[0], has_it.port)
        self._known = [better, *(known for known in self._known if known != better)]
        return False


class _Sentinels(Route):
    """Sentinels, which know the primary.

    redis-py's own (`redis.asyncio.sentinel`) puts passwords into what it tells of failures, and asks no other sentinel
    if what the first one names is no primary any more.
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
        told = "; ".join(dict.fromkeys(map(str, failures)))
        raise MailboxUnavailableError(f"{self._address.shown}: the sentinels lead to no primary: {told}")

    async def _primary(self, sentinel: Node) -> Node:
        """Where the primary is, as this sentinel knows it."""
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
                raise MailboxRefusedError(f"{self._address.shown}: {place} is no sentinel: {answer}")
        raise MailboxUnavailableError(f"{place} knows no primary called {service!r}")

    async def _check_role(self, connection: AbstractConnection, primary: Node) -> None:
        """After a failover, a sentinel may still name the server that has become a replica."""
        try:
            (role,) = await _ask(connection, ("ROLE",))
        except redis_errors.RedisError as failure:
            await connection.disconnect()
            raise self._address.explain(failure, primary) from None
        if isinstance(role, list) and role[0] != b"master":
            await connection.disconnect()
            raise MailboxUnavailableError(f"{primary[0]}:{primary[1]} is a replica")


def _raise_if_all_refuse(failures: list[MailboxError]) -> None:
    """Trying again is of no use only if none of them is worth asking again."""
    if failures and all(isinstance(failure, MailboxRefusedError) for failure in failures):
        raise failures[0]


async def _ask(connection: AbstractConnection, *commands: tuple[str, ...]) -> list[Any]:
    """The answers; what the server refuses is one, too. Raises redis-py's errors if there is no answer."""
    await connection.send_packed_command(connection.pack_commands(commands))
    answers: list[Any] = []
    for _ in commands:
        try:
            answers.append(await connection.read_response())
        except redis_errors.ResponseError as refusal:
            answers.append(refusal)
    return answers


def _node_of(entry: list[Any], asked: Node) -> Node | None:
    """The address of a node, as CLUSTER SLOTS tells it; a node that does not know its own is where we found it."""
    host, port = entry[:2]
    if host == b"?":  # its name is to be used, and it has none
        return None
    return (host.decode() if host else asked[0]), port
