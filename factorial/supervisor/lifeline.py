"""The child's side of supervision: what runs in a process that `process.py` has started.

Signals. The child is in a process group of its own, so a Ctrl-C at the terminal reaches the supervisor alone.
Somebody else may still signal every process (systemd signals all of a unit), and the supervisor's own SIGTERM may
follow many seconds later, when it is this child's turn. So no repetition counts as a second request: SIGTERM and
SIGINT, however often, ask to drain, and SIGQUIT is how the supervisor says "leave now". SIGHUP means something to the
supervisor alone; SIGUSR1 has a child write its stacks (`stacks.py`).

A child that is ready beats on its event loop, through the pipe on which it reports: a loop that is blocked is silent.
Nothing that a child reports may hold it up, so a report goes into the pipe whole, or not at all if nobody has read
for long.

The supervisor's death is seen by a thread that waits on the pipe from the parent. PR_SET_PDEATHSIG is not used: it
fires when the parent's *thread* ends, is Linux's alone, and would add nothing; that the parent's pid has changed is
asked as well, for the case that a fork of the supervisor holds the pipe open. An orphan drains, is told to leave
when its time to stop is over, and ends then in any case.
"""

import asyncio
import importlib
import json
import logging
import math
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from factorial.config import LoggingConfig
from factorial.errors import FactorialError, SupervisionError
from factorial.supervisor.logs import log_to_stderr, name_standard_streams
from factorial.supervisor.stacks import write_stacks_on_sigusr1

__all__ = [
    "BEAT", "FAILURE", "LEAVE_SECONDS", "READY", "SIGNALS", "Lifeline", "Orders", "inside_child", "run_child", "serve",
]  # fmt: skip

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1)
"""The signals a child listens to. They are held back from its birth until it does."""
LEAVE_SECONDS = 5.0
"""How long a child that was told to leave now may take to release what it holds."""
READY, FAILURE, BEAT = "ready", "failure", "beat"
"""What a child reports: one of these words; after the second a space and a text, after the third one and a JSON object
of numbers."""

_LINGER_SECONDS = 2.0
_REPORT_LIMIT = select.PIPE_BUF - 4
"""Bytes of a report: so many are written to a pipe in one piece, with the length that comes first."""

_inside_child = False


def inside_child() -> bool:
    """Whether this process was started by a supervision tree."""
    return _inside_child


@dataclass(frozen=True, slots=True)
class Orders:
    """What a child is told at its birth."""

    process: str
    target: str
    kwargs: Mapping[str, Any]
    reports: Connection
    seconds_to_stop: float
    beat_every: float
    logs: LoggingConfig


class Lifeline:
    """What ties a child to its supervisor: handed to the target as its first argument."""

    def __init__(self, process: str, reports: Connection, beat_every: float) -> None:
        self.process = process
        """The unique name of this incarnation of the child."""
        self.draining = asyncio.Event()
        """Stop taking up work, finish or release what is at hand, and return."""
        self.leaving = asyncio.Event()
        """Release what is at hand, and return now. `draining` is set as well."""
        self._reports = reports
        self._beat_every = beat_every
        self._gauges: dict[str, Callable[[], float]] = {}
        self._is_ready = False
        os.set_blocking(reports.fileno(), False)

    def ready(self) -> None:
        """Tell the supervisor that the start has succeeded. From now on the event loop beats."""
        if not self._is_ready:
            self._is_ready = True
            self._report(READY)
            self._beat(asyncio.get_running_loop().time())

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        """Have every beat carry what `read` gives at the time: a finite number, quickly. The last of a name counts."""
        self._gauges[name] = read

    def failed(self, why: str) -> None:
        """Tell the supervisor that the target has failed."""
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
            except Exception:  # code that we do not know: it must not stop the heart
                log.exception("the gauge %r has failed, and is left out from now on", name)
                del self._gauges[name]
        return figures

    def _report(self, text: str) -> None:
        """Tell the supervisor, if it is still there and listens."""
        with suppress(OSError):
            self._reports.send_bytes(text.encode(errors="replace")[:_REPORT_LIMIT])


def run_child(unit: Any) -> None:
    """The main function of a child: run the coroutine of aiomultiprocess's `unit`, and exit with what it returns."""
    global _inside_child
    _inside_child = True
    os.setpgid(0, 0)
    code = 1
    with asyncio.Runner() as runner:
        try:
            code = runner.run(unit.target(*unit.args))
        finally:
            _leave_soon(code)
    sys.exit(code)


async def serve(orders: Orders) -> int:
    """Run the target as `orders` say, and return the exit code."""
    lifeline = Lifeline(orders.process, orders.reports, orders.beat_every)
    name_standard_streams(orders.process, log_to_stderr(orders.process, orders.logs))
    if task := asyncio.current_task():
        task.set_name(orders.target)
    _listen(lifeline)
    threading.Thread(
        target=_watch_parent, args=(asyncio.get_running_loop(), lifeline, orders.seconds_to_stop), daemon=True
    ).start()
    try:
        await _load(orders.target)(lifeline, **orders.kwargs)
    except Exception as failed:  # the target is code that we do not know: its failure is this process's exit code
        error = _only_cause(failed)
        if isinstance(error, FactorialError):
            log.error("%s", error)
            lifeline.failed(str(error))
        else:
            log.exception("%s has failed", orders.target)
            lifeline.failed(f"{type(error).__name__}: {error}")
        return 1
    return 0


def _listen(lifeline: Lifeline) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lifeline.drain)
    loop.add_signal_handler(signal.SIGINT, lifeline.drain)
    loop.add_signal_handler(signal.SIGQUIT, lifeline.leave)
    loop.add_signal_handler(signal.SIGHUP, _take_no_notice)
    write_stacks_on_sigusr1(lifeline.process)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _take_no_notice() -> None:
    """Not SIG_IGN, which the programs that tools start would inherit."""


def _only_cause(error: Exception) -> Exception:
    """What a task group wraps, if it is one error."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _load(target: str) -> Callable[..., Awaitable[None]]:
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name, None)
    if not asyncio.iscoroutinefunction(function):
        raise SupervisionError(f"{target} is no `async def` function: a child needs one to run")
    return function


def _watch_parent(loop: asyncio.AbstractEventLoop, lifeline: Lifeline, seconds_to_stop: float) -> None:
    """In a thread, which goes on when the event loop is blocked: see an orphan off."""
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None  # run_child runs in children only
    while not wait([parent.sentinel], timeout=2.0) and os.getppid() == parent.pid:
        pass
    log.warning("the supervisor is gone: draining, then leaving")
    _tell(loop, lifeline.drain)
    if math.isinf(seconds_to_stop):
        return
    time.sleep(seconds_to_stop)
    _tell(loop, lifeline.leave)
    time.sleep(LEAVE_SECONDS)
    os._exit(1)


def _tell(loop: asyncio.AbstractEventLoop, request: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed already
        loop.call_soon_threadsafe(request)


def _leave_soon(code: int) -> None:
    """The target has ended: a thread that goes on (a tool that does not return) must not hold the process."""
    leave = threading.Timer(_LINGER_SECONDS, os._exit, (code,))
    leave.daemon = True
    leave.start()
