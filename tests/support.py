"""What tests of every kind share."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import psutil

__all__ = ["PATIENCE", "kill_session", "session_members", "wait_until"]

PATIENCE = 30.0
"""Seconds after which a test stops waiting for a condition. A busy machine is slow; a test that passes does not wait
that long.
"""


async def wait_until(condition: Callable[..., Any], timeout: float = PATIENCE, message: str = "") -> Any:
    """Wait until `condition()`, which may be a coroutine function, returns a true value. Returns that value.

    Fails the test after `timeout` seconds, with `message` and the last value.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{message or 'the condition'}: not within {timeout} s; the last value was {value!r}")
        await asyncio.sleep(0.005)


def session_members(leader: int) -> list[psutil.Process]:
    """The living processes of a session, including those that have lost their parent."""
    return [process for process in psutil.process_iter() if _is_member(process, leader)]


def kill_session(leader: int) -> None:
    """Kill the living processes of a session. Some may end by themselves meanwhile."""
    for process in session_members(leader):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _is_member(process: psutil.Process, leader: int) -> bool:
    try:
        return os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
