"""A child as an operating-system process: the child's side. Runs in a process that `child_process.py` has started.

Signals. The child is in a process group of its own, so a Ctrl-C at the terminal reaches only the supervisor. Other
programs may still signal every process (systemd signals all processes of a unit), and the supervisor's own SIGTERM may
follow many seconds later. So a repetition is not a second request: SIGTERM and SIGINT, however often, ask the child to
drain, and SIGQUIT from the supervisor asks it to leave now. The child ignores SIGHUP, which is meant for the
supervisor. On SIGUSR1 it writes its stacks (`stacks.py`).

Beats. A child that is ready sends beats from its event loop, through the pipe for its reports. If the loop is blocked,
no beat is sent. A report must never block the child: it is written to the pipe as a whole, or dropped if the pipe is
full.

Orphans. A thread waits on the pipe from the parent and sees the death of the supervisor. It also compares the parent's
pid, because a fork of the supervisor may hold the pipe open. PR_SET_PDEATHSIG is not used: it fires when the parent's
*thread* ends, exists only on Linux, and would add nothing. An orphan drains, is asked to leave when its time to stop is
over, and ends after that in any case.
"""

import asyncio
import importlib
import json
import logging
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from factorial.config import LoggingConfig
from factorial.errors import FactorialError, SupervisionError
from factorial.supervisor.process.stacks import write_stacks_on_sigusr1
from factorial.supervisor.rules.spec import LEAVE_SECONDS
from factorial.telemetry.logs import log_to_stderr, name_standard_streams

__all__ = [
    "BEAT", "FAILURE", "READY", "SIGNALS", "Assignment", "Lifeline", "inside_child", "run_child", "serve",
]  # fmt: skip

_logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1)
"""The signals that a child handles. They are blocked from its start until the handlers are installed."""
READY, FAILURE, BEAT = "ready", "failure", "beat"
"""The kinds of reports of a child. A failure is followed by a space and a text, a beat by a space and a JSON object of
numbers."""

_LINGER_SECONDS = 2.0
_REPORT_LIMIT = select.PIPE_BUF - 4
"""The largest report in bytes that a pipe takes in one piece, together with its length prefix."""

_inside_child = False


def inside_child() -> bool:
    """Whether this process was started by a supervision tree."""
    return _inside_child


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a child receives when it starts."""

    process: str
    target: str
    kwargs: Mapping[str, Any]
    reports: Connection
    seconds_to_stop: float
    beat_every: float
    logs: LoggingConfig


class Lifeline:
    """The connection between a child and its supervisor: the first argument of the target."""

    def __init__(self, process: str, reports: Connection, beat_every: float) -> None:
        self.process = process
        """The unique name of this incarnation of the child."""
        self.draining: asyncio.Event = asyncio.Event()
        """Set when the target has to stop claiming work, finish or release what it holds, and return."""
        self.leaving: asyncio.Event = asyncio.Event()
        """Set when the target has to release what it holds and return now. `draining` is set as well."""
        self._reports = reports
        self._beat_every = beat_every
        self._gauges: dict[str, Callable[[], float]] = {}
        self._is_ready = False
        os.set_blocking(reports.fileno(), False)

    def ready(self) -> None:
        """Report that the start has succeeded. From now on the event loop sends beats."""
        if not self._is_ready:
            self._is_ready = True
            self._report(READY)
            self._beat(asyncio.get_running_loop().time())

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        """Add a figure to every beat. `read` must return a finite number quickly. A later gauge with the same `name`
        replaces this one."""
        self._gauges[name] = read

    def failed(self, why: str) -> None:
        """Report that the target has failed."""
        self._report(f"{FAILURE} {why}")

    def drain(self) -> None:
        """Ask the target to stop gracefully."""
        self.draining.set()

    def leave(self) -> None:
        """Ask the target to stop at once."""
        self.draining.set()
        self.leaving.set()

    def _beat(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        figures = {"lag": round(max(0.0, loop.time() - due), 4), **self._read_gauges()}
        self._report(f"{BEAT} {json.dumps(figures, separators=(',', ':'))}")
        due = loop.time() + self._beat_every
        loop.call_at(due, self._beat, due)

    def _read_gauges(self) -> dict[str, float]:
        figures = {}
        for name, read in list(self._gauges.items()):
            try:
                figures[name] = read()
            except Exception:  # `read` is foreign code: it must not stop the beats
                _logger.exception("the gauge %r has failed and is removed", name)
                del self._gauges[name]
        return figures

    def _report(self, text: str) -> None:
        """Send a report, if the supervisor still reads from the pipe."""
        with suppress(OSError):
            self._reports.send_bytes(text.encode(errors="replace")[:_REPORT_LIMIT])


def run_child(unit: Any) -> None:
    """The main function of a child: run the coroutine of aiomultiprocess's `unit`, and exit with its result."""
    global _inside_child
    _inside_child = True
    os.setpgid(0, 0)
    code = 1
    with asyncio.Runner() as runner:
        try:
            code = _run_to_its_end(runner.get_loop(), unit.target(*unit.args))
        finally:
            _leave_soon(code)
    sys.exit(code)


def _run_to_its_end(loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, int]) -> int:
    """Run `main` on `loop`, and return its result.

    `SystemExit` and `KeyboardInterrupt` in any other asyncio task, such as one that a tool has started, stop the loop,
    too. They are not a request to end, because SIGINT has a handler: the loop goes on, and the task has its exception.
    """
    task = loop.create_task(main)
    while True:
        try:
            return loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt) as raised:
            if task.done():
                raise
            _logger.warning("%s was raised in an asyncio task, and ends only that task", type(raised).__name__)


async def serve(assignment: Assignment) -> int:
    """Run the target of `assignment`, and return the exit code."""
    lifeline = Lifeline(assignment.process, assignment.reports, assignment.beat_every)
    name_standard_streams(assignment.process, log_to_stderr(assignment.process, assignment.logs))
    if task := asyncio.current_task():
        task.set_name(assignment.target)
    _listen(lifeline)
    threading.Thread(
        target=_watch_parent, args=(asyncio.get_running_loop(), lifeline, assignment.seconds_to_stop), daemon=True
    ).start()
    try:
        await _load(assignment.target)(lifeline, **assignment.kwargs)
    except Exception as failed:  # the target is foreign code: its failure becomes the exit code of this process
        error = _only_cause(failed)
        if isinstance(error, FactorialError):
            _logger.error("%s", error)
            lifeline.failed(str(error))
        else:
            _logger.exception("%s has failed", assignment.target)
            lifeline.failed(f"{type(error).__name__}: {error}")
        return 1
    return 0


def _listen(lifeline: Lifeline) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lifeline.drain)
    loop.add_signal_handler(signal.SIGINT, lifeline.drain)
    loop.add_signal_handler(signal.SIGQUIT, lifeline.leave)
    loop.add_signal_handler(signal.SIGHUP, _ignore)
    write_stacks_on_sigusr1(lifeline.process)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _ignore() -> None:
    """A handler instead of SIG_IGN, which programs started by tools would inherit."""


def _only_cause(error: Exception) -> Exception:
    """The error that a task group wraps, if it is a single one."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _load(target: str) -> Callable[..., Awaitable[None]]:
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name, None)
    if not asyncio.iscoroutinefunction(function):
        raise SupervisionError(f"{target} is not an `async def` function: a child needs one to run")
    return function


def _watch_parent(loop: asyncio.AbstractEventLoop, lifeline: Lifeline, seconds_to_stop: float) -> None:
    """End an orphan. Runs in a thread, which works also while the event loop is blocked."""
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None  # run_child runs in children only
    while not wait([parent.sentinel], timeout=2.0) and os.getppid() == parent.pid:
        pass
    _logger.warning("the supervisor has ended: draining, then leaving")
    _request(loop, lifeline.drain)
    time.sleep(seconds_to_stop)
    _request(loop, lifeline.leave)
    time.sleep(LEAVE_SECONDS)
    os._exit(1)


def _request(loop: asyncio.AbstractEventLoop, request: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed already
        loop.call_soon_threadsafe(request)


def _leave_soon(code: int) -> None:
    """The target has ended: a thread that is still running (a tool that does not return) must not keep the process."""
    leave = threading.Timer(_LINGER_SECONDS, os._exit, (code,))
    leave.daemon = True
    leave.start()
