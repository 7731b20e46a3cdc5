"""The signals that a supervisor handles. Real: the signals, which the test sends to its own process, and a terminal.

The terminal belongs to a separate process.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from factorial.supervisor.process import signals
from factorial.supervisor.process.signals import stop_requests
from tests.support import wait_until


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_once_is_graceful_and_twice_is_now(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_SAME_REQUEST_SECONDS", 0.0)
    with stop_requests() as requests:
        os.kill(os.getpid(), number)
        await requests.graceful.wait()
        assert not requests.now.is_set()
        os.kill(os.getpid(), number)
        await requests.now.wait()


async def test_signals_that_come_together_are_one_request() -> None:
    """A Ctrl-C may also arrive through the program that started the supervisor."""
    with stop_requests() as requests:
        requests.request()
        requests.request()
        assert requests.graceful.is_set()
        assert not requests.now.is_set()


@pytest.mark.parametrize(("number", "asked"), [(signal.SIGHUP, "reload"), (signal.SIGUSR1, "dump")])
async def test_other_signals_are_not_a_request_to_stop(number: signal.Signals, asked: str) -> None:
    with stop_requests() as requests:
        for _ in range(2):  # a request can be repeated
            os.kill(os.getpid(), number)
            await asyncio.wait_for(getattr(requests, asked).wait(), 5)
            getattr(requests, asked).clear()
        assert not (requests.graceful.is_set() or requests.reload.is_set() or requests.dump.is_set())


async def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as requests:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.wait_for(requests.dump.wait(), 5)
            assert not requests.reload.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


IN_A_TERMINAL = """
import asyncio, fcntl, os, sys, termios
from factorial.supervisor.process.signals import stop_requests

async def main(file):
    with stop_requests() as requests:
        os.write(file, b"up ")
        waits = {name: asyncio.create_task(getattr(requests, name).wait()) for name in ("reload", "graceful")}
        while waits:
            await asyncio.wait(waits.values(), return_when=asyncio.FIRST_COMPLETED)
            for name in [name for name, wait in waits.items() if wait.done()]:
                os.write(file, name.encode() + b" ")
                del waits[name]

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
asyncio.run(main(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)))
"""


def test_a_closed_terminal_is_a_request_to_stop(tmp_path: Path) -> None:
    """While the terminal is open, SIGHUP means reload."""
    ours, theirs = os.openpty()
    said = tmp_path / "said"
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, said], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    try:
        says(said, "up ")
        process.send_signal(signal.SIGHUP)
        says(said, "up reload ")
        os.close(ours)  # the terminal closes, and the kernel sends SIGHUP
        says(said, "up reload graceful ")
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


def says(file: Path, text: str) -> None:
    deadline = time.monotonic() + 10
    while not file.exists() or file.read_text() != text:
        assert time.monotonic() < deadline, file.exists() and file.read_text()
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
async def test_earlier_handlers_are_restored(number: signal.Signals) -> None:
    caught: list[int] = []

    def mine(number: int, frame: Any) -> None:
        caught.append(number)

    before = signal.signal(number, mine)
    try:
        with stop_requests():
            assert signal.getsignal(number) is not mine
        os.kill(os.getpid(), number)
        await wait_until(lambda: caught == [number])
    finally:
        signal.signal(number, before)


async def test_in_another_thread_the_caller_requests_the_stop() -> None:
    async def asked() -> bool:
        with stop_requests() as requests:
            requests.request()
            return requests.graceful.is_set()

    assert await asyncio.to_thread(lambda: asyncio.run(asked()))
