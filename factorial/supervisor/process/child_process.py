"""A child as an operating-system process: the supervisor's side. The only module that uses aiomultiprocess.

- Children are spawned, not forked: they share nothing with the supervisor and receive plain data. They do not import
  the user's main module again (`multiprocessing` would), so a script that calls `orchestrator.run()` needs no
  `__main__` guard.
- aiomultiprocess starts a manager process for its `Process.namespace`, which is not used here. A signal to the process
  group kills that manager, and after that no process can be started. So it is replaced by a local namespace.
- The supervisor sees the end of a child at once through the child's pidfd, without polling. Where there is none
  (macOS), it uses multiprocessing's sentinel, a pipe that a grandchild may hold open.
- A child leads a process group of its own (`lifeline.py`). When the child has ended, the rest of the group, such as
  programs that tools started, is killed: nothing waits for their results.
- The end of a child is classified here, where the last request to it is known.
- Before a signal is sent, psutil checks by the start time that the pid still belongs to the child.
"""

import asyncio
import json
import logging
import math
import os
import secrets
import signal
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import aiomultiprocess
import aiomultiprocess.core
import psutil

from factorial.config import LoggingConfig
from factorial.errors import SupervisionError
from factorial.supervisor.process.lifeline import BEAT, FAILURE, READY, SIGNALS, Assignment, run_child, serve
from factorial.supervisor.process.usage import kills_for_memory, usage
from factorial.supervisor.rules.health import Figures, pace
from factorial.supervisor.rules.spec import LEAVE_SECONDS, ChildExit, ChildSpec, ExitReason
from factorial.supervisor.rules.strategy import classify, signal_name

__all__ = ["ChildProcess"]

_logger = logging.getLogger(__name__)

_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
"""A child that ends by one of these has written its stacks before (`stacks.py`)."""


class _LocalManager:
    """Replaces aiomultiprocess's manager process."""

    Namespace = staticmethod(types.SimpleNamespace)


aiomultiprocess.core._manager = _LocalManager()
aiomultiprocess.set_start_method("spawn")


class ChildProcess:
    """One incarnation of a child. The constructor starts the process, and needs a running event loop.

    `logs`: the logging settings of the child. Raises `SupervisionError` if the operating system starts no process.
    """

    def __init__(self, spec: ChildSpec, logs: LoggingConfig | None = None) -> None:
        self.spec = spec
        self._logs = logs or LoggingConfig()
        self.process: str = f"{spec.id}-{secrets.token_hex(3)}"
        self.failure: str = ""
        """The reason that the child reported before it ended."""
        self.figures: Figures = Figures()
        """The content of the latest beat, and the results of `measure`."""
        self.silence: float = 0.0
        """Seconds since the latest beat, as `monitor` counts them."""
        self.asked_with: signal.Signals | None = None
        """The signal that asked it to end: SIGTERM, SIGQUIT, or SIGKILL if it was not asked before it was killed."""
        self._asked_at = -math.inf
        self._is_killed = False
        self._killed_for = ""
        self._beaten_at = -math.inf
        self._ready_at: float | None = None
        self._kills_for_memory = kills_for_memory()
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._exit: asyncio.Future[ChildExit] = self._loop.create_future()
        try:
            self._reports = self._start(spec)
            self.pid: int = int(self._aio.pid)
            self._identity = psutil.Process(self.pid)
            usage(self._identity)  # CPU time is counted from here
            self._exit_fd, self._owns_exit_fd = self._open_exit_fd()
        except (OSError, psutil.NoSuchProcess) as refused:
            raise SupervisionError(f"child {spec.id!r} could not be started: {refused}") from refused
        self._loop.add_reader(self._reports.fileno(), self._on_report)
        self._loop.add_reader(self._exit_fd, self._on_exit)

    async def ready(self) -> bool:
        """Wait until the child is ready. Returns `False` if it ended first."""
        either: set[asyncio.Future[Any]] = {self._ready, self._exit}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return self._ready.done()

    async def exited(self) -> ChildExit:
        """Wait for the end of the child."""
        return await asyncio.shield(self._exit)

    def drain(self) -> None:
        """Ask the child to stop gracefully."""
        self._ask(signal.SIGTERM)

    def leave(self) -> None:
        """Ask the child to stop now."""
        self._ask(signal.SIGQUIT)

    def dump(self) -> None:
        """Have the child write its stacks to standard error, whatever it is doing.

        The stacks of its threads do not include the name of the process, so it is logged here.
        """
        _logger.warning("the stacks of %s (pid %d) follow", self.process, self.pid)
        self._send(signal.SIGUSR1)

    def kill(self, why: str = "") -> None:
        """End the child and all its descendants with SIGKILL.

        With `why`, the reason, the end is abnormal. Without `why`, the kill is the request to end, unless the child was
        asked before: then the end is abnormal, because the child did not stop in time. Only the first kill counts.
        """
        if not self._is_killed:
            if not why and self.asked_with is None:
                self.asked_with = signal.SIGKILL
            elif not why:
                why = f"it did not stop within {round(self._seconds_allowed(), 1):g} s"
            self._is_killed, self._killed_for = True, why
        with suppress(psutil.NoSuchProcess):
            for process in [self._identity, *self._identity.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    @property
    def age(self) -> float:
        """Seconds since it became ready, or 0 before that."""
        return 0.0 if self._ready_at is None else self._loop.time() - self._ready_at

    def measure(self, below: Mapping[int, int]) -> None:
        """Measure what the child uses. `below`: the number of processes below each process, by pid."""
        used = usage(self._identity)
        self.figures = replace(
            self.figures, rss=used.rss, cpu=used.cpu, open_files=used.open_files, descendants=below.get(self.pid)
        )
        self._kills_for_memory = kills_for_memory()

    def report(self) -> dict[str, float]:
        """The known figures: `rss` in bytes, `cpu` in percent, `open_files`, `descendants`, the `lag` of its event loop
        in seconds, `tasks`, and its other gauges. While a beat is overdue, `lag` is at least the delay of that beat."""
        report = self.figures.report()
        if "lag" in report:
            # `self.silence` is counted in whole rounds of the monitor.
            silence = min(self.silence, self._loop.time() - self._beaten_at)
            report["lag"] = max(report["lag"], round(silence - pace(self.spec.health), 4))
        return report

    def _start(self, spec: ChildSpec) -> Connection:
        reports: Connection
        reports, childs_end = aiomultiprocess.core.get_context().Pipe(duplex=False)
        assignment = Assignment(
            self.process, spec.target, spec.kwargs, childs_end, spec.shutdown, pace(spec.health), self._logs
        )
        self._aio = aiomultiprocess.Process(
            target=serve, args=(assignment,), name=self.process, process_target=run_child
        )
        try:
            with _main_hidden(), _signals_blocked():
                self._aio.start()
        except OSError:
            reports.close()
            raise
        finally:
            childs_end.close()
        return reports

    def _open_exit_fd(self) -> tuple[int, bool]:
        """A descriptor that becomes readable when the child ends, and whether this object has to close it."""
        try:
            return os.pidfd_open(self.pid), True
        except (AttributeError, OSError):
            return int(self._aio.aio_process.sentinel), False

    def _ask(self, number: signal.Signals) -> None:
        if not self._is_killed:  # the end of a killed child is not an answer to this request
            self.asked_with, self._asked_at = number, self._loop.time()
        self._send(number)

    def _seconds_allowed(self) -> float:
        """The seconds between the last request to end and now, at most the limit for it."""
        limit = LEAVE_SECONDS if self.asked_with is signal.SIGQUIT else self.spec.shutdown
        return min(limit, self._loop.time() - self._asked_at)

    def _send(self, number: signal.Signals) -> None:
        with suppress(psutil.NoSuchProcess):
            self._identity.send_signal(number)

    def _on_report(self) -> None:
        try:
            kind, _, content = self._reports.recv_bytes().decode(errors="replace").partition(" ")
        except (EOFError, OSError):
            self._close_reports()
            return
        if kind == BEAT:
            self.silence, self._beaten_at = 0.0, self._loop.time()
            self.figures = replace(self.figures, gauges=json.loads(content))
        elif kind == FAILURE:
            self.failure = content
        elif kind == READY and not self._ready.done():
            self._ready_at = self._loop.time()
            self._ready.set_result(None)

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._exit_fd)
        if self._owns_exit_fd:
            os.close(self._exit_fd)
        while not self._reports.closed and self._reports.poll():
            self._on_report()
        self._close_reports()
        self._kill_group()
        self._collect()

    def _collect(self) -> None:
        """Collect the exit code. The sentinel closes a moment before the exit code is available."""
        exitcode = self._aio.exitcode
        if exitcode is None and self._identity.is_running():
            self._loop.call_later(0.005, self._collect)
            return
        with suppress(ValueError):  # multiprocessing has no exit code if another process collected it
            self._aio.close()
        exit = self._classify(exitcode)
        if exitcode is not None and -exitcode in _CRASHES:
            _logger.warning(
                "the stacks above are of %s (pid %d), which has crashed: %s", self.process, self.pid, exit.signal
            )
        self._exit.set_result(exit)

    def _classify(self, exitcode: int | None) -> ChildExit:
        reason, why = classify(exitcode, self.asked_with), ""
        if self._is_killed and exitcode in (None, -signal.SIGKILL):
            why = self._killed_for
        elif exitcode == -signal.SIGKILL:
            why = self._hint()
        if why:
            reason = ExitReason.ABNORMAL
        asked = self.asked_with is not None
        return ChildExit(self.spec.id, self.process, self.pid, exitcode, signal_name(exitcode), reason, asked, why)

    def _hint(self) -> str:
        """Why it may have been killed from outside."""
        before, now = self._kills_for_memory, kills_for_memory()
        if before is None or now is None or now <= before:
            return ""
        return "probably out of memory (the kernel has just killed a process for that)"

    def _kill_group(self) -> None:
        """Kill what the child left in its process group, unless its pid belongs to another process by now."""
        if self._identity.is_running() or not psutil.pid_exists(self.pid):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _close_reports(self) -> None:
        if not self._reports.closed:
            self._loop.remove_reader(self._reports.fileno())
            self._reports.close()


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Hide the main module from multiprocessing, which would have the child import it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block the signals while the child starts, so that none ends it before it handles them."""
    resource_tracker.ensure_running()  # otherwise the start of a process starts it, and that unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
