"""The life of a process in the store: it registers, sends heartbeats, and releases runs; when it is dead, its runs are
reclaimed (`register.lua`, `release.lua`, `reclaim.lua`).

Called by the heartbeat, inventory and maintenance actors, and by the supervisor when a process has ended.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from factorial._core.json import dump_json
from factorial.mailbox.script import Scripts, counted

__all__ = ["Cause", "Reclaimed", "beat", "held", "reclaim", "reclaim_process", "register", "release"]


class Cause(StrEnum):
    """Why a process does not hold its runs any more, which decides what is counted against them."""

    LEFT = "left"
    """It was asked to end, or ended in order. Nothing is counted."""
    CRASHED = "crashed"
    """It ended by itself (exit code, SIGSEGV, ...), or was killed for its health: one of its runs may be the cause."""
    KILLED = "killed"
    """A signal from outside, or an expired lease: no run is blamed, unless the process held only that one."""


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """The task ids of reclaimed runs. Runs that were to be cancelled are not included: they ended as cancelled."""

    go_on: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    """They ended as failed, with `crash_loop`."""


async def register(
    scripts: Scripts, *, process: str, agent: str, lease: float, patience: float, about: Mapping[str, Any]
) -> set[str]:
    """Give the process a lease of `lease` seconds. Returns the runs that it holds.

    `patience`: seconds within which the living process would register again if its lease were lost.
    """
    held = await scripts.run("register", process, _ms(lease), _ms(patience), agent, dump_json(dict(about)))
    return {task_id.decode() for task_id in held}


async def beat(scripts: Scripts, *, process: str, lease: float) -> bool:
    """Renew the lease. False: it has expired, and the process has to register again."""
    return bool(await scripts.commands.execute("PEXPIRE", scripts.keys.lease(process), _ms(lease)))


async def held(scripts: Scripts, *, process: str) -> set[str]:
    """The runs that the process holds, by the server's account."""
    return {task_id.decode() for task_id in await scripts.commands.execute("SMEMBERS", scripts.keys.held(process))}


async def release(scripts: Scripts, *, process: str, task_ids: Collection[str]) -> list[str]:
    """Release runs that `process` holds by the server's account, and does not execute. Returns those that go on."""
    return [task_id.decode() for task_id in await scripts.run("release", process, *counted(task_ids))]


async def reclaim_process(scripts: Scripts, *, process: str, cause: Cause) -> Reclaimed:
    """Reclaim at once all runs of `process`, which has ended by `cause`."""
    return await _reclaim(scripts, process=process, most=100, cause=cause)


async def reclaim(scripts: Scripts, *, most: int) -> Reclaimed:
    """Reclaim the runs of all processes whose lease has been missing for longer than their patience, `most` at a
    time.
    """
    return await _reclaim(scripts, process="", most=most, cause=Cause.KILLED)


async def _reclaim(scripts: Scripts, *, process: str, most: int, cause: Cause) -> Reclaimed:
    reclaimed = Reclaimed()
    while True:
        go_on, given_up, more = await scripts.run("reclaim", most, process, cause)
        reclaimed.go_on.extend(task_id.decode() for task_id in go_on)
        reclaimed.given_up.extend(task_id.decode() for task_id in given_up)
        if not more:
            return reclaimed


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
