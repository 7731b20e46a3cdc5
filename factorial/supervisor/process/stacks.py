"""Writes the stacks of a process to its standard error, on SIGUSR1 and when it crashes.

There are two writers. faulthandler writes the stacks of all threads within the signal handler, in C. It needs neither
the event loop nor the interpreter's lock, so it shows where a blocked process is stuck. Then a handler in Python writes
where each asyncio task is suspended, as soon as Python code runs; the event loop may still be blocked. faulthandler
does not write the name of the process, so the supervisor logs which stacks follow, and which were those of a crash
(`child_process.py`).
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

__all__ = ["task_stacks", "write_stacks_on_sigusr1"]

_NAMES = 10
"""The most names that are written of tasks at the same place. Of the others only the number is written."""


def write_stacks_on_sigusr1(process: str) -> None:
    """Write all stacks to standard error on SIGUSR1, and those of all threads on a crash such as SIGSEGV.

    Call this in the main thread, within a running event loop. `process`: the name of the process in the output.
    """
    loop = asyncio.get_running_loop()

    def write_tasks(number: int, frame: FrameType | None) -> None:
        try:
            text = task_stacks(process, loop)
        except Exception as failed:  # this runs between any two instructions of the program, and must not break it
            text = f"the asyncio tasks of {process} cannot be shown: {failed!r}\n"
        _write(f"{text}--- end of the stacks of {process} (pid {os.getpid()}) ---\n")

    signal.signal(signal.SIGUSR1, write_tasks)
    signal.siginterrupt(signal.SIGUSR1, False)
    if (stderr := _real_stderr()) is not None:
        faulthandler.enable(stderr, all_threads=True)
        faulthandler.register(signal.SIGUSR1, stderr, all_threads=True, chain=True)


def task_stacks(process: str, loop: asyncio.AbstractEventLoop) -> str:
    """Where each asyncio task of `loop` is suspended, innermost call last, grouped by place."""
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
    """The frames from a coroutine to the innermost one that it awaits. `Task.get_stack` returns only the first one."""
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
    """Write without Python's buffers, which the signal may have interrupted in the middle of a write."""
    data, stderr = text.encode(errors="backslashreplace"), _real_stderr()
    with suppress(OSError):
        while data and stderr is not None:
            data = data[os.write(stderr, data) :]
