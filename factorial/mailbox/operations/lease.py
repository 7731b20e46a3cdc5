"""The life of a process in the mailbox: it registers, beats, gives back what it does not execute, and is buried
(`register.lua`, `disown.lua`, `reclaim.lua`).

Called by the heartbeat, inventory and maintenance actors, and by the supervisor when a process has died.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from factorial._core.json import dump_json
from factorial.mailbox.script import Scripts, counted

__all__ = ["Cause", "TakenBack", "beat", "bury", "disown", "held", "reclaim", "register"]


class Cause(StrEnum):
    """Why a process holds its runs no more, and so what that says of them."""

    LEFT = "left"
    """It was asked to end, or ended in order: nobody is blamed, and nothing is counted."""
    CRASHED = "crashed"
    """It ended by itself (exit code, SIGSEGV, ...), or was killed for its health: one of its runs may be at fault."""
    KILLED = "killed"
    """By a signal from outside, or its lease is over: nothing says that a run is at fault, unless it was alone."""


@dataclass(frozen=True, slots=True)
class TakenBack:
    """What dead processes held, by task id. Those that were to be cancelled are not in it: they are."""

    go_on: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    """They ended as failed, with `crash_loop`."""


async def register(
    scripts: Scripts, *, process: str, agent: str, lease: float, patience: float, about: Mapping[str, Any]
) -> set[str]:
    """Give the process a lease of `lease` seconds, and tell which runs it holds.

    `patience`: seconds within which the living process would register again if its lease were lost.
    """
    held = await scripts.run("register", process, _ms(lease), _ms(patience), agent, dump_json(dict(about)))
    return {task_id.decode() for task_id in held}


async def beat(scripts: Scripts, *, process: str, lease: float) -> bool:
    """Renew the lease. False: it was gone, and the process has to register again."""
    return bool(await scripts.commands.execute("PEXPIRE", scripts.keys.lease(process), _ms(lease)))


async def held(scripts: Scripts, *, process: str) -> set[str]:
    """The runs that the process holds, as the mailbox sees it."""
    return {task_id.decode() for task_id in await scripts.commands.execute("SMEMBERS", scripts.keys.held(process))}


async def disown(scripts: Scripts, *, process: str, task_ids: Collection[str]) -> list[str]:
    """Give back runs that `process` holds, as the mailbox sees it, and does not execute. Tells which runs go on."""
    return [task_id.decode() for task_id in await scripts.run("release", process, *counted(task_ids))]


async def bury(scripts: Scripts, *, process: str, cause: Cause) -> TakenBack:
    """Take back at once all that `process` held: it has ended, by `cause`. Tells which runs that were."""
    return await _take_back(scripts, process=process, most=100, cause=cause)


async def reclaim(scripts: Scripts, *, most: int) -> TakenBack:
    """Take back what processes held whose lease is missing for longer than their patience. Tells which runs."""
    return await _take_back(scripts, process="", most=most, cause=Cause.KILLED)


async def _take_back(scripts: Scripts, *, process: str, most: int, cause: Cause) -> TakenBack:
    taken = TakenBack()
    while True:
        go_on, given_up, more = await scripts.run("reclaim", most, process, cause)
        taken.go_on.extend(task_id.decode() for task_id in go_on)
        taken.given_up.extend(task_id.decode() for task_id in given_up)
        if not more:
            return taken


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
