"""What PID 1 owes to everybody else, for a container in which we are the first process.

The kernel gives every orphan to PID 1, which must take its exit status, or it stays as a zombie; and when PID 1 ends,
the kernel kills all. A supervisor that waited for strangers would take its own children's statuses away from whoever
asks for them, so the two are kept apart: PID 1 forks, the child is the supervisor, and what is left of PID 1 passes
signals on, reaps, and ends with the supervisor's exit code.

A supervisor that is killed leaves worker processes behind. They drain and leave by themselves, and within their grace
(`lifeline.py` ends them if they do not), so that much PID 1 waits for. It does not wait for programs that their tools
have left.
"""

import os
import signal

import psutil

__all__ = ["as_init"]

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def as_init() -> None:
    """If we are PID 1, go on as a child of it; PID 1 itself does not return from here until all is over.

    To be called first of all: after a fork there is one thread, and an event loop cannot be shared.
    """
    if os.getpid() != 1:
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it came to us as ignored, there would be nothing to wait for
    awaited = {*PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    supervisor = os.fork()
    if supervisor == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    raise SystemExit(_serve(supervisor, awaited))


def _serve(supervisor: int, awaited: set[signal.Signals]) -> int:
    """Pass signals on and reap, until the supervisor and what it left have ended. Gives the supervisor's exit code."""
    code = None
    left: set[int] = set()
    while code is None or left:
        number = signal.sigwait(awaited)
        if number != signal.SIGCHLD:
            if code is None:  # what a killed supervisor has left is draining already
                os.kill(supervisor, number)
            continue
        for pid, status in _reap():
            left.discard(pid)
            if pid == supervisor:
                code = os.waitstatus_to_exitcode(status)
                left = _workers() if code < 0 else set()
    return code if code >= 0 else 128 - code


def _reap() -> list[tuple[int, int]]:
    """All children that have ended, each with its status. One SIGCHLD may stand for several."""
    ended = []
    try:
        while (one := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append(one)
    except ChildProcessError:
        pass
    return ended


def _workers() -> set[int]:
    """The worker processes that we have inherited, by how multiprocessing starts them."""
    found = set()
    for process in psutil.Process().children():
        try:
            if any("spawn_main" in argument for argument in process.cmdline()):
                found.add(process.pid)
        except psutil.Error:  # it has ended, or is another user's
            continue
    return found
