"""Starts the Valkey of `embedded:DIR` for the first process that uses DIR, and stops it after the last one.

    start.lock    held while a process starts or stops the server, so that only one does
    server.lock   held by the server itself, as an open file, from its start to its end, so it cannot become stale
    users.lock    held, shared, by each process that uses the server; the one that can lock it exclusively is the last

All three are `flock`s, which the operating system releases when their holder dies, however it dies. So a server that
outlived its killed users is found and used again, and a server that died is restarted from its append-only file.
The functions here block: from async code, call them in a thread.
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
except ImportError:  # Windows: `attach` refuses
    fcntl = None  # type: ignore[assignment]

__all__ = ["EmbeddedServer", "attach", "is_running", "resolve"]

_logger = logging.getLogger("factorial.mailbox")

_SCHEME = "embedded:"
_START_TIMEOUT = 60.0
"""Seconds that another process may take to start or stop the server, and that the server may take to load its data."""
_STOP_TIMEOUT = 10.0
"""Seconds that the server may take to stop."""
_POLL = 0.005


class EmbeddedServer:
    """One use of the server of a directory, from `attach` to `release`. `url` is where the server listens.

    The server runs until its last user, in any process, has called `release()` or ended.
    """

    def __init__(self, files: ServerFiles, users_lock: int) -> None:
        self.directory: Path = files.directory
        self.url: str = files.url
        self._files = files
        self._users_lock = users_lock
        self._process = os.getpid()
        atexit.register(self.release)

    def release(self) -> None:
        """Stop using the server. The last user stops it. A second call does nothing."""
        atexit.unregister(self.release)
        # A forked child has a copy of this object, but only its parent uses the server.
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
        if not _wait_for(lambda: not _server_is_alive(self.directory), seconds=_STOP_TIMEOUT):
            _logger.warning("embedded:%s: its Valkey does not stop; see %s", self.directory, self._files.log)


def resolve(url: str) -> tuple[str, EmbeddedServer | None]:
    """The URL for a client, and the embedded server behind it, if `url` names one. The caller releases that server.

    Raises as `attach` does.
    """
    if not url.startswith(_SCHEME):
        return url, None
    server = attach(url.removeprefix(_SCHEME))
    return server.url, server


def is_running(url: str) -> bool:
    """Whether the server of `url`, an `embedded:DIR`, runs now. It starts nothing and creates no directory.

    Raises `MailboxRefusedError` if the directory cannot be used.
    """
    path = Path(url.removeprefix(_SCHEME)).expanduser().resolve()
    try:
        if not (path / "server.lock").is_file():
            return False
        with _starting_or_stopping(path):  # this tries the server's lock, which would make a starting server fail
            return _server_is_alive(path)
    except OSError as unusable:
        raise _refusal(path, unusable) from None


def attach(directory: str | os.PathLike[str]) -> EmbeddedServer:
    """Use the server of `directory`. It is started if it does not run.

    Raises `MailboxRefusedError` if it cannot be started (no Valkey for this machine, a directory that cannot be used,
    data that this Valkey cannot read), and `MailboxUnavailableError` if it runs but does not answer.
    """
    if fcntl is None:
        raise MailboxRefusedError("embedded:DIR works on Linux and macOS only: name a server with redis://")
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
    return MailboxRefusedError(f"embedded:{path}: the directory cannot be used: {why}; name one that you can write to")


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
        # The server has inherited the open file, and with it the lock.
        os.close(server_lock)
    wait_until_ready(files, is_alive=lambda: _server_is_alive(directory), log_start=log_start, seconds=_START_TIMEOUT)
    return files


def _server_is_alive(directory: Path) -> bool:
    server_lock = _open_lock(directory / "server.lock")
    try:
        return not _try_lock(server_lock)
    finally:
        os.close(server_lock)


@contextlib.contextmanager
def _starting_or_stopping(directory: Path) -> Iterator[None]:
    """Hold `start.lock`. Raises `MailboxUnavailableError` if another process holds it for too long."""
    lock = _open_lock(directory / "start.lock")
    try:
        if not _wait_for(lambda: _try_lock(lock), seconds=_START_TIMEOUT):
            raise MailboxUnavailableError(
                f"embedded:{directory}: another process has been starting or stopping its Valkey for "
                f"{_START_TIMEOUT:g} s; see {directory / 'valkey.log'}"
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
