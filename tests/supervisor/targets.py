"""The targets of the children in these tests. They write what they see to a diary, as JSON lines."""

import asyncio
import ctypes
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

from factorial.supervisor.process.lifeline import Lifeline, inside_child


def note(diary: str, lifeline: Lifeline, event: str, **more: Any) -> None:
    """Write one line in one piece, so that children can share a diary."""
    line = json.dumps({"event": event, "process": lifeline.process, "pid": os.getpid(), **more})
    with Path(diary).open("a") as file:
        file.write(f"{line}\n")


def read(diary: str | Path, event: str | None = None) -> list[dict[str, Any]]:
    """The entries so far, in order: all, or those of one event."""
    lines = Path(diary).read_text().splitlines() if Path(diary).exists() else []
    return [entry for entry in map(json.loads, lines) if event in (None, entry["event"])]


async def obedient(lifeline: Lifeline, *, diary: str) -> None:
    """Drains at once."""
    note(diary, lifeline, "started", inside_child=inside_child(), main=getattr(sys.modules["__main__"], "__file__", ""))
    lifeline.ready()
    await lifeline.draining.wait()
    note(diary, lifeline, "drained")


async def slow(lifeline: Lifeline, *, diary: str, seconds: float) -> None:
    """Drains slowly, unless it is asked to leave now."""
    note(diary, lifeline, "started")
    lifeline.ready()
    await lifeline.draining.wait()
    note(diary, lifeline, "draining")
    try:
        async with asyncio.timeout(seconds):
            await lifeline.leaving.wait()
        note(diary, lifeline, "left")
    except TimeoutError:
        note(diary, lifeline, "drained")


async def stubborn(lifeline: Lifeline, *, diary: str) -> None:
    """Ignores everything: its event loop is blocked."""
    note(diary, lifeline, "started")
    lifeline.ready()
    await asyncio.sleep(0)
    time.sleep(600)  # noqa: ASYNC251  # this is what it is for


async def never_ready(lifeline: Lifeline, *, diary: str) -> None:
    """Does not get ready, and ends only when it has to leave."""
    note(diary, lifeline, "started")
    await lifeline.leaving.wait()


async def fails(lifeline: Lifeline, *, diary: str) -> None:
    """Fails before it is ready."""
    note(diary, lifeline, "started")
    raise ValueError("no such luck")


async def exits(lifeline: Lifeline, *, diary: str, code: int = 0) -> None:
    """Ends by itself as soon as it is ready: with an error, if `code` is not 0."""
    note(diary, lifeline, "started")
    lifeline.ready()
    if code:
        raise ValueError("out of order")


async def fails_later(lifeline: Lifeline, *, diary: str, good_starts: int) -> None:
    """Starts successfully a few times, then fails."""
    note(diary, lifeline, "started")
    if len(read(diary, "started")) > good_starts:
        raise ValueError("no more")
    lifeline.ready()
    await lifeline.draining.wait()


async def with_grandchild(lifeline: Lifeline, *, diary: str) -> None:
    """Runs a program, as a tool may, which keeps every inherited descriptor open."""
    program = subprocess.Popen(["sleep", "600"], close_fds=False)  # noqa: ASYNC220  # it does not wait
    note(diary, lifeline, "started", grandchild=program.pid)
    lifeline.ready()
    await lifeline.draining.wait()


async def with_endless_thread(lifeline: Lifeline, *, diary: str) -> None:
    """Drains, while a thread of its own does not return."""
    note(diary, lifeline, "started")
    threading.Thread(target=time.sleep, args=(600,)).start()
    lifeline.ready()
    await lifeline.draining.wait()
    note(diary, lifeline, "drained")


async def blocked_in_python(lifeline: Lifeline, *, diary: str, after: float = 0.3) -> None:
    """Blocks its event loop with `time.sleep`, while one of its tools awaits something that never comes."""

    async def tool_that_waits() -> None:
        await asyncio.Event().wait()

    async def run_of_an_agent() -> None:
        await tool_that_waits()

    run = asyncio.create_task(run_of_an_agent(), name="run-1")
    lifeline.ready()
    await asyncio.sleep(after)
    note(diary, lifeline, "blocked")
    time.sleep(600)  # noqa: ASYNC251  # this is what it is for
    run.cancel()


async def blocked_in_c(lifeline: Lifeline, *, diary: str) -> None:
    """Blocks all of its threads: a regular expression that backtracks forever holds the interpreter's lock."""
    lifeline.ready()
    await asyncio.sleep(0.3)
    note(diary, lifeline, "blocked")
    re.match(r"(a+)+$", "a" * 40 + "b")


async def hungry(lifeline: Lifeline, *, diary: str, megabytes: int) -> None:
    """Uses `megabytes` of memory."""
    food = b"x" * (megabytes * 1024 * 1024)
    note(diary, lifeline, "started", bytes=len(food))
    lifeline.ready()
    await lifeline.draining.wait()


async def with_gauges(lifeline: Lifeline, *, diary: str) -> None:
    """Has gauges, one of which is broken."""
    lifeline.gauge("tasks", lambda: 7)
    lifeline.gauge("broken", lambda: 1 / 0)
    lifeline.ready()
    await lifeline.draining.wait()
    note(diary, lifeline, "drained")


async def talkative(lifeline: Lifeline, *, diary: str, beats: int) -> None:
    """Sends beats that fill a pipe quickly, and makes an entry after `beats` of them."""
    beaten = 0

    def count() -> int:
        nonlocal beaten
        beaten += 1
        if beaten == beats:
            note(diary, lifeline, "has beaten")
        return beaten

    lifeline.gauge("x" * 3900, count)
    lifeline.ready()
    await lifeline.draining.wait()


async def fails_at_length(lifeline: Lifeline, *, diary: str) -> None:
    """Fails with a message that is too long for a report."""
    raise ValueError("ü" * 10_000)


async def prints(lifeline: Lifeline, *, diary: str) -> None:
    """Prints, warns, logs, and writes to the descriptors directly."""
    print("one", "line")
    print("two\nlines", file=sys.stderr)
    warnings.warn("a warning", stacklevel=1)
    logging.getLogger("user").warning("a log line")
    print("begun", end="", flush=True)
    os.write(2, b"written past Python\n")
    lifeline.ready()
    await lifeline.draining.wait()


async def crashes(lifeline: Lifeline, *, diary: str) -> None:
    """Reads at address 0, as faulty C code may."""
    lifeline.ready()
    await asyncio.sleep(0.1)
    ctypes.string_at(0)
