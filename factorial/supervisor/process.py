"""A child as an operating-system process. The only module that touches aiomultiprocess.

- Children are spawned, not forked: they share nothing with us and get plain data. They do not import the user's
  main module again (`multiprocessing` would), so a script that calls `orchestrator.run()` needs no `__main__` guard.
- aiomultiprocess starts a manager process for its `Process.namespace`, which we do not use. A signal to the process
  group kills that manager, and then no process can be started any more: it is replaced by a local namespace.
- The end of a child is seen at once through its pidfd, without polling. Where there is none (macOS), through
  multiprocessing's sentinel, a pipe which a grandchild may hold open.
- A child leads a process group of its own (`lifeline.py`). When it has ended, whatever is left of the group, such as
  programs that its tools started, is killed: nobody waits for their results any more.
- Before a signal is sent, psutil makes sure by the start time that the pid is still our child.
"""

import asyncio
import logging
import os
import secrets
import signal
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import aiomultiprocess
import aiomultiprocess.core
import psutil

from factorial.errors import SupervisionError
from factorial.supervisor.lifeline import READY, SIGNALS, Orders, run_child, serve
from factorial.supervisor.spec import ChildSpec

__all__ = ["ChildProcess"]


class _LocalManager:
    """Stands in for aiomultiprocess's manager process."""

    Namespace = staticmethod(types.SimpleNamespace)


aiomultiprocess.core._manager = _LocalManager()
aiomultiprocess.set_start_method("spawn")


class ChildProcess:
    """One incarnation of a child. Made within a running event loop; the process starts with it.

    Raises `SupervisionError` if the operating system does not give us a process.
    """

    def __init__(self, spec: ChildSpec) -> None:
        self.process = f"{spec.id}-{secrets.token_hex(3)}"
        self.failure = ""
        """What the child said about why it failed."""
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._exit: asyncio.Future[int | None] = self._loop.create_future()
        try:
            self._reports = self._start(spec)
            self.pid = int(self._aio.pid)
            self._identity = psutil.Process(self.pid)
            self._exit_fd, self._owns_exit_fd = self._open_exit_fd()
        except (OSError, psutil.NoSuchProcess) as refused:
            raise SupervisionError(f"child {spec.id!r} could not be started: {refused}") from refused
        self._loop.add_reader(self._reports.fileno(), self._on_report)
        self._loop.add_reader(self._exit_fd, self._on_exit)

    async def ready(self) -> bool:
        """Wait until the child is ready; `False` if it ended before it was."""
        either: set[asyncio.Future[Any]] = {self._ready, self._exit}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return self._ready.done()

    async def exited(self) -> int | None:
        """Wait for the end of the child and return its exit code, `None` if somebody else took it."""
        return await asyncio.shield(self._exit)

    def drain(self) -> None:
        """Ask the child to stop gracefully."""
        self._send(signal.SIGTERM)

    def leave(self) -> None:
        """Ask the child to stop now."""
        self._send(signal.SIGQUIT)

    def kill(self) -> None:
        """End the child and all its descendants with SIGKILL."""
        with suppress(psutil.NoSuchProcess):
            for process in [self._identity, *self._identity.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def _start(self, spec: ChildSpec) -> Connection:
        reports: Connection
        reports, childs_end = aiomultiprocess.core.get_context().Pipe(duplex=False)
        log_level = logging.getLogger().getEffectiveLevel()
        orders = Orders(self.process, spec.target, spec.kwargs, childs_end, spec.seconds_to_stop, log_level)
        self._aio = aiomultiprocess.Process(target=serve, args=(orders,), name=self.process, process_target=run_child)
        try:
            with _main_hidden(), _signals_held():
                self._aio.start()
        except OSError:
            reports.close()
            raise
        finally:
            childs_end.close()
        return reports

    def _open_exit_fd(self) -> tuple[int, bool]:
        """A descriptor that becomes readable when the child ends, and whether it is ours to close."""
        try:
            return os.pidfd_open(self.pid), True
        except (AttributeError, OSError):
            return int(self._aio.aio_process.sentinel), False

    def _send(self, number: signal.Signals) -> None:
        with suppress(psutil.NoSuchProcess):
            self._identity.send_signal(number)

    def _on_report(self) -> None:
        try:
            text = self._reports.recv_bytes().decode()
        except (EOFError, OSError):
            self._close_reports()
            return
        if text != READY:
            self.failure = text
        elif not self._ready.done():
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
        """Take the exit code. The sentinel closes a moment before it is there."""
        exitcode = self._aio.exitcode
        if exitcode is None and self._identity.is_running():
            self._loop.call_later(0.005, self._collect)
            return
        with suppress(ValueError):  # multiprocessing knows no exit code if somebody else took it
            self._aio.close()
        self._exit.set_result(exitcode)

    def _kill_group(self) -> None:
        """Kill what the child left in its process group. Not if its pid is another's by now."""
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
def _signals_held() -> Iterator[None]:
    """Have the child be born with our signals held back, so that none ends it before it can listen."""
    resource_tracker.ensure_running()  # starting a process would start it, and it sets the signals free
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
