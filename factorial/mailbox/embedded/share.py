"""`embedded:DIR`: a real Valkey of our own, with its data in DIR, shared by all who name that DIR.

    start.lock    held while somebody starts or stops the server, so that only one does
    server.lock   held by the server itself, as an open file, from its start to its end: it cannot go stale
    users.lock    held (shared) by everybody who uses the server; whoever can have it alone was the last

All three are `flock`s, which the operating system gives back when their holder dies, however it dies. So a
server that outlived killed users is found and used again, and a server that died is started anew from its
append-only file. The calls here wait: from async code, call them in a thread.
"""

import atexit
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from factorial.errors import MailboxRefusedError, MailboxUnavailableError
from factorial.mailbox.embedded.valkey import ServerFiles, start_server, stop_server, wait_until_ready

try:
    import fcntl
except ImportError:  # Windows: `attach` says so
    fcntl = None  # type: ignore[assignment]

__all__ = ["EmbeddedServer", "attach", "is_running", "resolve"]

logger = logging.getLogger("factorial.mailbox")

_SCHEME = "embedded:"
_PATIENCE = 60.0
_PATIENCE_WITH_LEAVING = 10.0
_POLL = 0.005


class EmbeddedServer:
    """One user's hold on the server of a directory. `url` is where it listens.

    The server runs until the last of its users, in whatever process, has called `release()` or ended.
    """

    def __init__(self, files: ServerFiles, users_lock: int) -> None:
        self.directory = files.directory
        self.url = files.url
        self._files = files
        self._users_lock = users_lock
        self._process = os.getpid()
        atexit.register(self.release)

    def release(self) -> None:
        """Let go of the server; the last one stops it. May be called twice."""
        atexit.unregister(self.release)
        # A forked child has a copy of this object, but the hold is its parent's.
        if self._users_lock < 0 or os.getpid() != self._process:
            return
        users_lock, self._users_lock = self._users_lock, -1
        try:
            with _starting_or_stopping(self._files.directory):
                fcntl.flock(users_lock, fcntl.LOCK_UN)
                if _try_lock(users_lock):
                    self._stop()
        finally:
            os.close(users_lock)

    def _stop(self) -> None:
        stop_server(self._files)
        if not _wait_for(lambda: not _server_lives(self.directory), seconds=_PATIENCE_WITH_LEAVING):
            logger.warning("embedded:%s: its Valkey does not stop, see %s", self.directory, self._files.log)


def resolve(url: str) -> tuple[str, EmbeddedServer | None]:
    """`url` for a client, and the embedded server behind it that is to be released in the end, if there is one."""
    if not url.startswith(_SCHEME):
        return url, None
    server = attach(url.removeprefix(_SCHEME))
    return server.url, server


def is_running(url: str) -> bool:
    """Whether the server of `url`, which is `embedded:DIR`, runs now. Starts nothing, and makes no directory.

    Raises `MailboxRefusedError` if the directory cannot be used.
    """
    path = Path(url.removeprefix(_SCHEME)).expanduser().resolve()
    try:
        if not (path / "server.lock").is_file():
            return False
        with _starting_or_stopping(path):  # to look is to try the lock, which a server that starts would stumble over
            return _server_lives(path)
    except OSError as unusable:
        raise _refusal(path, unusable) from None


def attach(directory: str | os.PathLike[str]) -> EmbeddedServer:
    """Use the server of `directory`; it is started if it does not run.

    Raises `MailboxRefusedError` if it cannot be started (no Valkey for this machine, a directory that cannot be
    used, data that this Valkey does not read) and `MailboxUnavailableError` if it runs and does not answer.
    """
    if fcntl is None:
        raise MailboxRefusedError("embedded:DIR works on Linux and macOS: use redis:// here")
    if not os.fspath(directory):
        raise MailboxRefusedError("embedded: names no directory: write embedded:DIR, for example embedded:.factorial")
    path = Path(directory).expanduser().resolve()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _starting_or_stopping(path):
            files = _running_server(path)
            users_lock = _open_lock(path / "users.lock")
            fcntl.flock(users_lock, fcntl.LOCK_SH)
    except OSError as unusable:
        raise _refusal(path, unusable) from None
    return EmbeddedServer(files, users_lock)


def _refusal(path: Path, unusable: OSError) -> MailboxRefusedError:
    why = unusable.strerror or unusable
    return MailboxRefusedError(f"embedded:{path}: the directory cannot be used: {why}; name one that you may write to")


def _running_server(directory: Path) -> ServerFiles:
    server_lock = _open_lock(directory / "server.lock")
    try:
        if _try_lock(server_lock):
            files = ServerFiles.for_start(directory)
            log_start = start_server(files, keep_open=server_lock)
        else:
            files = ServerFiles.of_running(directory)
            log_start = 0
    finally:
        # The lock stays with the server, which has inherited the open file.
        os.close(server_lock)
    wait_until_ready(files, lives=lambda: _server_lives(directory), log_start=log_start, seconds=_PATIENCE)
    return files


def _server_lives(directory: Path) -> bool:
    server_lock = _open_lock(directory / "server.lock")
    try:
        return not _try_lock(server_lock)
    finally:
        os.close(server_lock)


@contextlib.contextmanager
def _starting_or_stopping(directory: Path) -> Iterator[None]:
    """One process at a time."""
    lock = _open_lock(directory / "start.lock")
    try:
        if not _wait_for(lambda: _try_lock(lock), seconds=_PATIENCE):
            raise MailboxUnavailableError(
                f"embedded:{directory}: another process has been starting or stopping its Valkey for {_PATIENCE:g} s; "
                f"see {directory / 'valkey.log'}"
            )
        yield
    finally:
        os.close(lock)


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True
