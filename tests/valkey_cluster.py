"""A real cluster of server processes on the loopback interface, assembled by commands."""

import time
from collections.abc import Callable
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from tests.support import PATIENCE
from tests.valkey import ValkeyServer, free_port, is_in_step

__all__ = ["SLOTS", "ValkeyCluster", "ask", "wait"]

SLOTS = 16384


class ValkeyCluster:
    """Three primaries, each with a third of the slots, and `replicas` replicas. Call `start`."""

    def __init__(self, directory: Path, *, replicas: int = 0, node_timeout: float = 15.0) -> None:
        self.primaries = [_node(directory / f"n{number}") for number in range(3)]
        self.replicas = [_node(directory / f"r{number}") for number in range(replicas)]
        self.node_timeout = node_timeout
        """Seconds of silence after which a node counts as dead."""

    @property
    def nodes(self) -> list[ValkeyServer]:
        """All nodes, including stopped ones."""
        return [*self.primaries, *self.replicas]

    @property
    def url(self) -> str:
        """The URL with the three initial primaries."""
        return "redis://" + ",".join(f"127.0.0.1:{node.port}" for node in self.primaries)

    def start(self, **settings: str) -> None:
        """Start the nodes. Returns when each reports a complete cluster."""
        buses = [free_port() for _ in self.nodes]
        for node, bus in zip(self.nodes, buses, strict=True):
            node.start(
                cluster_enabled="yes", cluster_node_timeout=str(round(self.node_timeout * 1000)),
                cluster_port=str(bus), cluster_replica_validity_factor="0", repl_diskless_sync_delay="0", **settings,
            )  # fmt: skip
        first, *others = self.nodes
        for number, node in enumerate(self.primaries):
            span = (SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1)
            ask(node, "CLUSTER", "ADDSLOTSRANGE", *span)
            ask(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in others:
            ask(node, "CLUSTER", "MEET", "127.0.0.1", first.port, buses[0])
        wait(lambda: all(_knows_all(node, len(self.nodes)) for node in self.nodes), "the nodes to know each other")
        pairs = [(replica, self.primaries[number % 3]) for number, replica in enumerate(self.replicas)]
        for replica, primary in pairs:
            ask(replica, "CLUSTER", "REPLICATE", ask(primary, "CLUSTER", "MYID"))
        wait(lambda: all(_is_whole(node) for node in self.nodes), "the cluster to be complete")
        wait(lambda: all(is_in_step(*pair) for pair in pairs), "the replicas to be in step")

    def stop(self) -> None:
        """Kill all nodes."""
        for node in self.nodes:
            node.stop()

    def slot_of(self, namespace: str) -> int:
        """The slot of all keys of `namespace`."""
        return int(ask(self.primaries[0], "CLUSTER", "KEYSLOT", f"{{{namespace}:0}}:"))

    def serving(self, namespace: str) -> ValkeyServer:
        """The node that has the slot of `namespace` at present."""
        [node] = [node for node in self.nodes if node.answers() and _serves(node, namespace)]
        return node

    def node_without(self, namespace: str) -> ValkeyServer:
        """A primary that does not have the slot of `namespace`."""
        return next(node for node in self.primaries if node is not self.serving(namespace))

    def replica_of(self, primary: ValkeyServer) -> ValkeyServer:
        """The replica of `primary`."""
        return next(
            node for node in self.replicas if f"master_port:{primary.port}\r\n" in _command(node, "INFO", "replication")
        )

    def migrate(self, namespace: str, to: ValkeyServer) -> None:
        """Move the slot of `namespace` to another node, as one atomic migration (Valkey 9)."""
        source, slot = self.serving(namespace), self.slot_of(namespace)
        target = ask(to, "CLUSTER", "MYID")
        ask(source, "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target)
        wait(lambda: _serves(to, namespace), "the slot to move")


def _node(directory: Path) -> ValkeyServer:
    directory.mkdir()
    return ValkeyServer(directory, tcp=True)


def ask(node: ValkeyServer, *command: str | int) -> str:
    """The answer to one command, as text."""
    with Redis(port=node.port, decode_responses=True) as client:
        return str(client.execute_command(*command))


def wait(condition: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
    """Wait until `condition()` is true."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {timeout} s")
        time.sleep(0.02)


def _knows_all(node: ValkeyServer, count: int) -> bool:
    known = _command(node, "CLUSTER", "NODES")
    return known.count("connected") == count and "handshake" not in known


def _is_whole(node: ValkeyServer) -> bool:
    return "cluster_state:ok" in _command(node, "CLUSTER", "INFO")


def _command(node: ValkeyServer, *command: str) -> str:
    return node.command(*command).decode()


def _serves(node: ValkeyServer, namespace: str) -> bool:
    try:
        ask(node, "EXISTS", f"{{{namespace}:0}}:layout")
    except RedisError:
        return False
    return True
