"""The duties of PID 1, for a container in which this command is the first process.

PID 1 becomes the parent of every orphan and must collect its exit status, otherwise the orphan stays as a zombie. When
PID 1 ends, the kernel kills all other processes. If the supervisor itself collected the statuses of orphans, it would
also take those of its own children away from multiprocessing. So PID 1 forks. The child becomes the supervisor. PID 1
passes signals on, collects exit statuses, and ends with the supervisor's exit code.

A supervisor that is killed leaves worker processes behind. They drain and end by themselves within their grace
(`lifeline.py` ends those that do not), and PID 1 waits for them. It does not wait for programs that tools have left.
"""

import os
import signal

import psutil

__all__ = ["as_init"]

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def as_init() -> None:
    """If this process is PID 1, fork: the function returns in the child, and PID 1 serves until the end.

    Call this before anything else: a fork keeps only one thread, and an event loop cannot be shared.
    """
    if os.getpid() != 1:
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it was inherited as ignored, there would be nothing to wait for
    awaited = {*_PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    supervisor = os.fork()
    if supervisor == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    raise SystemExit(_serve(supervisor, awaited))


def _serve(supervisor: int, awaited: set[signal.Signals]) -> int:
    """Pass signals on and collect exit statuses until the supervisor and the worker processes that it left have ended.
    Returns the supervisor's exit code."""
    code = None
    left: set[int] = set()
    while code is None or left:
        number = signal.sigwait(awaited)
        if number != signal.SIGCHLD:
            if code is None:  # the worker processes of a killed supervisor are draining already
                os.kill(supervisor, number)
            continue
        for pid, status in _reap():
            left.discard(pid)
            if pid == supervisor:
                code = os.waitstatus_to_exitcode(status)
                left = _worker_processes() if code < 0 else set()
    return code if code >= 0 else 128 - code


def _reap() -> list[tuple[int, int]]:
    """All children that have ended, each with its status. One SIGCHLD may announce several."""
    ended = []
    try:
        while (one := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append(one)
    except ChildProcessError:
        pass
    return ended


def _worker_processes() -> set[int]:
    """The inherited worker processes, recognised by the command line with which multiprocessing starts them."""
    found = set()
    for process in psutil.Process().children():
        try:
            if any("spawn_main" in argument for argument in process.cmdline()):
                found.add(process.pid)
        except psutil.Error:  # it has ended, or belongs to another user
            continue
    return found
