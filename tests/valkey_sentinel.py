"""A real primary with a replica, and real sentinels that monitor them, on the loopback interface."""

import subprocess
from pathlib import Path

from tests.valkey import ValkeyServer, is_in_step, server_binary
from tests.valkey_cluster import ask, wait

__all__ = ["Sentinel", "ValkeySentinels"]

SERVICE = "mymaster"


class Sentinel(ValkeyServer):
    """One sentinel: the same program as the server, with a file for its state."""

    def start(self, **settings: str) -> None:
        """Start it with the sentinel's `settings` for the service. Returns when it answers."""
        file = self.directory / "sentinel.conf"
        if not file.exists():  # a restarted sentinel continues with its state
            lines = [f"sentinel {name.replace('_', '-')} {SERVICE} {value}" for name, value in settings.items()]
            file.write_text("\n".join([f"port {self.port}", "bind 127.0.0.1", f"dir {self.directory}", *lines, ""]))
        self._process = subprocess.Popen(
            [server_binary(), file, "--sentinel"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        wait(self.answers, "the sentinel to start", timeout=10)


class ValkeySentinels:
    """Three sentinels with a quorum of two, over a primary and a replica. Call `start`."""

    def __init__(self, directory: Path, *, down_after: float = 0.5) -> None:
        self.servers = [ValkeyServer(_made(directory / name), tcp=True) for name in ("a", "b")]
        self.sentinels: list[ValkeyServer] = [Sentinel(_made(directory / f"s{n}"), tcp=True) for n in range(3)]
        self.down_after = down_after
        """Seconds of silence after which a sentinel considers a server dead."""

    @property
    def url(self) -> str:
        """The URL with the three sentinels."""
        return f"redis+sentinel://{','.join(f'127.0.0.1:{each.port}' for each in self.sentinels)}/{SERVICE}/0"

    def start(self, **settings: str) -> None:
        """Start the servers with `settings`, then the sentinels. Returns when these know each other and the replica."""
        primary, replica = self.servers
        for server in self.servers:
            server.start(repl_diskless_sync_delay="0", **settings)
        ask(replica, "REPLICAOF", "127.0.0.1", primary.port)
        wait(lambda: is_in_step(replica, primary), "the replica to be in step")
        for sentinel in self.sentinels:
            sentinel.start(
                monitor=f"127.0.0.1 {primary.port} 2",
                down_after_milliseconds=str(round(self.down_after * 1000)),
                failover_timeout="5000",
            )
        wait(lambda: all(map(_knows_the_others, self.sentinels)), "the sentinels to know each other and the replica")

    def stop(self) -> None:
        """Kill all sentinels and servers."""
        for each in (*self.sentinels, *self.servers):
            each.stop()

    @property
    def primary(self) -> ValkeyServer:
        """The primary, according to the first sentinel."""
        with_port = self.sentinels[0].command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE).decode()
        return next(server for server in self.servers if f"\r\n{server.port}\r\n" in with_port)

    @property
    def replica(self) -> ValkeyServer:
        """The server that is not the primary."""
        return next(server for server in self.servers if server is not self.primary)

    def fail_over(self) -> None:
        """Order a coordinated failover, which loses nothing (Valkey 9). Returns when the sentinels report it.

        On a busy machine a sentinel may consider a server dead at that moment and drop the order. So it is repeated.
        """
        successor, leader = self.replica, self.sentinels[0]

        def is_done() -> bool:
            if self.primary is successor:
                return True
            if all(map(_knows_the_others, self.sentinels)) and "failover_in_progress" not in _flags(leader):
                ask(leader, "SENTINEL", "FAILOVER", SERVICE, "COORDINATED")
            return False

        wait(is_done, "the failover")


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _flags(sentinel: ValkeyServer) -> str:
    with_names = sentinel.command("SENTINEL", "MASTER", SERVICE).decode().split("\r\n")
    return with_names[with_names.index("flags") + 2]


def _knows_the_others(sentinel: ValkeyServer) -> bool:
    known = sentinel.command("INFO", "sentinel").decode()
    return "status=ok" in known and "slaves=1,sentinels=3" in known
