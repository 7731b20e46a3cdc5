"""A test run leaves no process behind, however it ends (Linux).

Tests start servers, supervisors and daemons in sessions of their own. None of them notices that the test run was ended
by a signal. So the run is split into three processes before the first test:

    caller    the process that was started as `pytest`: waits, and passes on the signals that end a run
    guard     the subreaper (prctl(2)): every descendant that loses its parent becomes its child, daemons included
    tests     pytest itself, with its xdist workers and all that the tests start

When the tests are over, or when the caller has been signalled or killed, the guard kills all of its descendants that
are left. A signal asks pytest to stop first, as Ctrl-C does, so that fixtures clean up and failures are reported.

Conftest imports the hook below; this file has no other user.
"""

import ctypes
import math
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn

import psutil
import pytest

__all__ = ["pytest_cmdline_main"]

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_HANDLED = (*_ENDING, signal.SIGCHLD)
_SECONDS_TO_STOP = 15.0
"""How long pytest may take to stop when it is asked to. The guard kills it then."""
_SECONDS_TO_LEAVE = 2.0
"""How long a process may outlive a finished run, as multiprocessing's tracker does. The guard kills it then."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Run the tests below a guard; the return value in the calling process is pytest's exit code.

    A worker of xdist is below the guard already. A process with threads, such as a debugger's, is not forked.
    """
    if sys.platform != "linux" or hasattr(config, "workerinput") or threading.active_count() > 1:
        return None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    caller = os.getpid()
    sys.stdout.flush()
    guard = os.fork()
    if guard:
        return _wait_as_caller(guard)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    tests = os.fork()
    if tests:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        _keep_guard(tests, caller)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return None


def _wait_as_caller(guard: int) -> int:
    """Wait for the guard. Returns pytest's exit code, or ends by the signal that ended the run."""
    ended_by: signal.Signals | None = None
    while not (reaped := os.waitpid(guard, os.WNOHANG))[0]:
        received = signal.sigwaitinfo(_HANDLED)
        if received.si_signo == signal.SIGCHLD or _is_from_terminal(received):
            continue
        if received.si_signo != signal.SIGINT:  # pytest has an exit code of its own for that
            ended_by = signal.Signals(received.si_signo)
        os.kill(guard, received.si_signo)
    if ended_by is not None:
        signal.signal(ended_by, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [ended_by])
        os.kill(os.getpid(), ended_by)
    return os.waitstatus_to_exitcode(reaped[1])


def _keep_guard(tests: int, caller: int) -> NoReturn:
    """Wait for the end of the tests, or stop them when the caller is signalled or gone; then kill all that is left."""
    deadline = math.inf
    while (code := _reap().get(tests)) is None and time.monotonic() < deadline:
        received = signal.sigtimedwait(_HANDLED, 0.5)
        is_ending = received is not None and received.si_signo != signal.SIGCHLD and not _is_from_terminal(received)
        if deadline == math.inf and (is_ending or os.getppid() != caller):
            deadline = time.monotonic() + _SECONDS_TO_STOP
            _interrupt_job()
    _end_all(_SECONDS_TO_LEAVE if deadline == math.inf else 0.0)
    if code is None:
        code = -signal.SIGKILL
    os._exit(code if code >= 0 else 128 - code)


def _interrupt_job() -> None:
    """Send SIGINT to pytest and the workers of xdist: to all descendants that a Ctrl-C at a terminal would reach."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == os.getpgrp():
                process.send_signal(signal.SIGINT)


def _end_all(seconds: float) -> None:
    """Kill the descendants of this process that are still there after so many seconds, and those that they start."""
    deadline = time.monotonic() + seconds
    myself = psutil.Process()
    while left := [process for process in myself.children(recursive=True) if _is_alive(process)]:
        if time.monotonic() >= deadline:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        time.sleep(0.01)
        _reap()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _reap() -> dict[int, int]:
    """Exit codes of the children of this process that have ended, by pid."""
    codes = {}
    try:
        while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
            codes[reaped[0]] = os.waitstatus_to_exitcode(reaped[1])
    except ChildProcessError:
        pass
    return codes


def _is_from_terminal(received: signal.struct_siginfo) -> bool:
    """Whether the kernel sent the signal to the whole foreground job: pytest has received it, too."""
    return received.si_code > 0


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")
