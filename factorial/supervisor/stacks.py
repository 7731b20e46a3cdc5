"""What a process is doing at the moment, written to its standard error when it gets SIGUSR1, and when it crashes.

Two hands write. faulthandler writes the stacks of all threads from within the signal handler itself, in C: it needs
neither the event loop nor the interpreter's lock, so it says where a blocked process is stuck. Python's own handler
then writes where each asyncio task is suspended, as soon as Python code runs at all; the loop may be blocked.
The first hand knows no names: the supervisor logs whose stacks follow (`process.py`), or which were those of a crash.
"""

import asyncio
import faulthandler
import os
import signal
import sys
import traceback
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

__all__ = ["of_tasks", "write_stacks_on_sigusr1"]

_NAMES = 10
"""So many names of tasks that are at the same place are given, and the number of the others."""


def write_stacks_on_sigusr1(process: str) -> None:
    """Have SIGUSR1 write all stacks to standard error, and a crash (such as SIGSEGV) those of all threads.

    To be called in the main thread, within a running event loop. `process` is the name that is given.
    """
    loop = asyncio.get_running_loop()

    def write_tasks(number: int, frame: FrameType | None) -> None:
        try:
            text = of_tasks(process, loop)
        except Exception as failed:  # this may run between any two instructions of the program: it must not break it
            text = f"the asyncio tasks of {process} cannot be shown: {failed!r}\n"
        _write(f"{text}--- end of the stacks of {process} (pid {os.getpid()}) ---\n")

    signal.signal(signal.SIGUSR1, write_tasks)
    signal.siginterrupt(signal.SIGUSR1, False)
    if (stderr := _real_stderr()) is not None:
        faulthandler.enable(stderr, all_threads=True)
        faulthandler.register(signal.SIGUSR1, stderr, all_threads=True, chain=True)


def of_tasks(process: str, loop: asyncio.AbstractEventLoop) -> str:
    """Where each asyncio task of `loop` is, innermost call last; tasks that are at the same place together."""
    places: dict[str, list[str]] = defaultdict(list)
    tasks = [task for task in asyncio.all_tasks(loop) if not task.done()]
    for task in tasks:
        places["".join(traceback.StackSummary.extract(_frames(task.get_coro())).format())].append(task.get_name())
    lines = [f"The {len(tasks)} asyncio tasks of {process} (pid {os.getpid()}), innermost call last:\n"]
    running = asyncio.current_task(loop)
    if running is not None:
        lines.append(f"Running at this moment, as the stacks of the threads show: {running.get_name()}\n")
    for place, names in sorted(places.items(), key=lambda item: -len(item[1])):
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        lines.append(f"Task {', '.join(sorted(names)[:_NAMES])}{more}:\n{place}")
    return "".join(lines)


def _frames(awaited: Any) -> Iterator[tuple[FrameType, int]]:
    """The frames from a coroutine to what it waits for in the end. `Task.get_stack` gives the first one only."""
    while awaited is not None:
        kind = next((kind for kind in ("cr", "gi", "ag") if hasattr(awaited, f"{kind}_frame")), None)
        if kind is None:
            return
        if (frame := getattr(awaited, f"{kind}_frame")) is not None:
            yield frame, frame.f_lineno
        awaited = getattr(awaited, "gi_yieldfrom" if kind == "gi" else f"{kind}_await", None)


def _real_stderr() -> int | None:
    try:
        return sys.__stderr__.fileno() if sys.__stderr__ is not None else None
    except (OSError, ValueError):
        return None


def _write(text: str) -> None:
    """Past Python's buffers, which may be in the middle of something."""
    data, stderr = text.encode(errors="backslashreplace"), _real_stderr()
    with suppress(OSError):
        while data and stderr is not None:
            data = data[os.write(stderr, data) :]
