"""Which tasks are deferred, and why. Called by `status`; changes nothing."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from factorial.mailbox.script import Scripts

__all__ = ["Deferred", "read_deferred"]


@dataclass(frozen=True, slots=True)
class Deferred:
    """The deferred tasks of one agent."""

    tasks: int
    error: str
    """Why one of them is deferred."""


async def read_deferred(scripts: Scripts, agents: Iterable[str]) -> dict[str, Deferred]:
    """The deferred tasks of those `agents` that have some, by name."""
    names = sorted(set(agents))
    found = await asyncio.gather(*(_read(scripts, agent) for agent in names))
    return {agent: one for agent, one in zip(names, found, strict=True) if one is not None}


async def _read(scripts: Scripts, agent: str) -> Deferred | None:
    key, execute = scripts.keys.key("deferred", agent), scripts.commands.execute
    count, sample = await asyncio.gather(execute("HLEN", key), execute("HRANDFIELD", key, 1, "WITHVALUES"))
    return Deferred(int(count), sample[1].decode(errors="replace")) if count and sample else None
