"""Notifications to systemd. Real: the socket. Fake: systemd, which the test plays."""

import asyncio
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from factorial.supervisor.service.notify import ServiceManager


class Systemd:
    """The manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(5)

    def hears(self) -> list[str]:
        """The lines of the next message."""
        return self.socket.recv(4096).decode().split("\n")


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "notify")


@pytest.fixture
def systemd(address: str) -> Iterator[Systemd]:
    systemd = Systemd(address)
    yield systemd
    systemd.socket.close()


def test_the_life_of_a_service(systemd: Systemd, address: str) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": address})
    manager.ready("4 processes")
    assert systemd.hears() == ["READY=1", "STATUS=4 processes"]
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.reloading()
    kind, since, _ = systemd.hears()
    assert kind == "RELOADING=1"
    assert before <= int(since.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.ready("two\nlines")
    assert systemd.hears() == ["READY=1", "STATUS=two lines"]
    manager.stopping()
    assert systemd.hears() == ["STOPPING=1", "STATUS=stopping"]


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_an_abstract_socket() -> None:
    systemd = Systemd(f"\0factorial-test-{os.getpid()}")
    ServiceManager({"NOTIFY_SOCKET": f"@factorial-test-{os.getpid()}"}).ready()
    assert systemd.hears()[0] == "READY=1"
    systemd.socket.close()


def test_children_cannot_notify_in_our_name(address: str) -> None:
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    ServiceManager(environment)
    assert environment == {"HOME": "/"}


def test_the_default_is_the_environment_of_the_process(
    systemd: Systemd, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    ServiceManager().stopping()
    assert systemd.hears()[0] == "STOPPING=1"
    assert "NOTIFY_SOCKET" not in os.environ


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getppid())}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_for_one_process(variables: dict[str, str], seconds: float | None) -> None:
    assert ServiceManager(dict(variables)).watchdog == seconds


async def test_the_watchdog_is_notified_at_half_of_its_interval(systemd: Systemd, address: str) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"})
    reassuring = asyncio.create_task(manager.keep_alive())
    begin = time.monotonic()
    for _ in range(4):
        assert await asyncio.to_thread(systemd.hears) == ["WATCHDOG=1"]
    assert 0.3 <= time.monotonic() - begin < 3  # at once, and then every 0.1 s
    reassuring.cancel()


async def test_a_blocked_event_loop_is_silent(systemd: Systemd, address: str) -> None:
    """This is what the watchdog is for: only the event loop itself may report that it runs."""
    manager = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000"})
    reassuring = asyncio.create_task(manager.keep_alive())
    await asyncio.sleep(0)
    assert systemd.hears() == ["WATCHDOG=1"]
    time.sleep(0.1)  # noqa: ASYNC251  # it blocks the loop on purpose
    systemd.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.hears()
    reassuring.cancel()


async def test_without_a_watchdog_nothing_is_sent(systemd: Systemd, address: str) -> None:
    await asyncio.wait_for(ServiceManager({"NOTIFY_SOCKET": address}).keep_alive(), 1)


@pytest.mark.parametrize("where", ["", "/no/such/socket", "@no-such-socket", "vsock:2:1", "x" * 200])
def test_an_absent_manager_is_not_an_error(where: str) -> None:
    ServiceManager({"NOTIFY_SOCKET": where}).ready("up")


def test_a_manager_that_does_not_read_does_not_block(systemd: Systemd, address: str) -> None:
    """Its queue is full, so a blocking send would wait forever."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as crowd, pytest.raises(BlockingIOError):
        crowd.setblocking(False)
        while True:
            crowd.sendto(b"STATUS=me first", address)
    speaking = threading.Thread(target=ServiceManager({"NOTIFY_SOCKET": address}).ready, daemon=True)
    speaking.start()
    speaking.join(5)
    assert not speaking.is_alive()
