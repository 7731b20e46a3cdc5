"""The supervisor's own signals. Real signals, sent by the test to its own process."""

import asyncio
import os
import signal
from typing import Any

import pytest

from factorial.supervisor import signals
from factorial.supervisor.signals import stop_requests
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
    """A Ctrl-C that also reaches us through the program that started us."""
    with stop_requests() as requests:
        requests.request()
        requests.request()
        assert requests.graceful.is_set()
        assert not requests.now.is_set()


async def test_handlers_are_as_before() -> None:
    caught: list[int] = []

    def mine(number: int, frame: Any) -> None:
        caught.append(number)

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with stop_requests():
            assert signal.getsignal(signal.SIGTERM) is not mine
        os.kill(os.getpid(), signal.SIGTERM)
        await wait_until(lambda: caught == [signal.SIGTERM])
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_in_another_thread_the_caller_asks() -> None:
    async def asked() -> bool:
        with stop_requests() as requests:
            requests.request()
            return requests.graceful.is_set()

    assert await asyncio.to_thread(lambda: asyncio.run(asked()))
