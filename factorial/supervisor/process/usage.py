"""What the operating system reports about processes. Nothing here raises for a process that has ended.

`usage` takes about 0.1 ms, so it can be called every second for every child. `descendants` reads every process of the
machine, once for all children.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

__all__ = ["Usage", "descendants", "kills_for_memory", "usage"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process uses. `None` where the operating system does not report it."""

    rss: int | None = None
    """Bytes."""
    cpu: float | None = None
    """Percent of one processor since the last call for this `psutil.Process`."""
    open_files: int | None = None


def usage(process: psutil.Process) -> Usage:
    """What `process` uses now. All fields are `None` if it has ended."""
    with process.oneshot():
        memory = _known(process.memory_info)
        return Usage(memory and memory.rss, _known(process.cpu_percent), _known(process.num_fds))


def _known(read: Callable[[], _T]) -> _T | None:
    try:
        return read()
    except (psutil.Error, OSError):  # ended, a zombie, or not readable for this user
        return None


def descendants() -> dict[int, int]:
    """The number of processes below each process that is below this one, by pid."""
    parents: dict[int, int] = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            parents[process.pid] = process.ppid()
    below = dict.fromkeys(parents, 0)
    for pid in parents:
        while (pid := parents.get(pid, 0)) in parents:
            below[pid] += 1
    return below


def kills_for_memory() -> int | None:
    """The number of processes that the kernel has killed because memory ran out: in our control group, or on the whole
    machine if the group has no such count. `None` if there is no count at all (macOS).

    If the count has risen since a process was last seen alive, that is a strong hint about a SIGKILL of unknown origin.
    It is not a proof, because the count does not say which processes were killed.
    """
    for counts in (_control_group() / "memory.events", Path("/proc/vmstat")):
        with suppress(OSError, ValueError):
            for line in counts.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    return None


def _control_group() -> Path:
    """The directory of this process's control group (version 2). It may not exist."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return Path("/sys/fs/cgroup" + line.removeprefix("0::"))
    return Path("/sys/fs/cgroup")
