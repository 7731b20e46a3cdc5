"""Operates running systems from anywhere: reads their status, and sends them orders.

This needs only the server that holds the namespace. Orders are messages to a supervisor's control mailbox. The status
is made from the latest reports of the supervisors. No agent is imported, and no server is started.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from factorial._core.text import one_line
from factorial.config import RedisConfig
from factorial.errors import ConfigError, SupervisionError
from factorial.mailbox.supervisors.orders import send, wait_for_answer
from factorial.mailbox.supervisors.reports import LOST_AFTER, Report, read_all
from factorial.mailbox.transport.blocking import BlockingConnection
from factorial.mailbox.views.deferred import Deferred, read_deferred
from factorial.mailbox.views.queues import PlaceCounts, read_queues
from factorial.mailbox.views.server_memory import Memory, read_memory
from factorial.mailbox.views.unserved import read_unserved
from factorial.mailbox.visit import Visit, visiting
from factorial.supervisor.operate.status import Subject, draw, span
from factorial.supervisor.operate.verbs import USAGE
from factorial.supervisor.tree.nodes import checked_report

__all__ = ["Selection", "Status", "Supervisor", "reach", "read_status"]

_POLL_SECONDS = 0.2
_EXTRA_SECONDS = 1.0
"""How much longer than `patience` the sender listens, so that it hears whether the supervisor has dropped the order."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which supervisors are meant. Without a name and without `all`: the only one that is alive."""

    name: str = ""
    all: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """The latest reports of some supervisors, and the queues of their agents."""

    supervisors: Sequence[Report]
    queues: Mapping[str, PlaceCounts]
    deferred: Mapping[str, Deferred]
    unserved: Sequence[str]
    """Agents that have queued tasks, and that no process and none of the supervisors serves."""
    memory: Memory
    missing: SupervisionError | None
    """The error to raise if there is no such supervisor."""

    @property
    def is_any_alive(self) -> bool:
        """Whether one of the supervisors is not lost."""
        return any(not one.is_lost for one in self.supervisors)

    def as_text(self) -> str:
        """A table per supervisor, and one of the queues. The queues are shown also if no supervisor is known."""
        subjects = [Subject(one.content, one.age, one.is_lost) for one in self.supervisors]
        notes = [(agent, f"{one.tasks} deferred: {one.error}") for agent, one in self.deferred.items()]
        notes += [(agent, "tasks wait, and no runner serves this agent: start one") for agent in self.unserved]
        if warning := self.memory.warning:
            notes.append(("the server", warning))
        return draw(subjects, self.queues, notes)

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {
            "supervisors": [{**one.content, "age": one.age, "lost": one.is_lost} for one in self.supervisors],
            "queues": {agent: dict(counts) for agent, counts in self.queues.items()},
            "deferred": {agent: asdict(one) for agent, one in self.deferred.items()},
            "unserved": list(self.unserved),
            "memory": asdict(self.memory),
        }


class Supervisor:
    """A running supervisor that takes orders."""

    def __init__(self, visit: Visit, name: str) -> None:
        self.name = name
        self._visit = visit

    async def carry_out(self, order: Mapping[str, Any], patience: float) -> str:
        """Send `order`, wait for it to be carried out, and return what was done, in one line. A stop is done when the
        supervisor has ended.

        `patience`: the seconds to wait. Raises `ConfigError` if the order is wrong in itself, such as an unknown
        target, `SupervisionError` if it could not be carried out, and `MailboxError`.
        """
        blocking = await BlockingConnection.open(self._visit.redis)
        try:
            return await self._send_and_wait(blocking, order, patience)
        finally:
            await blocking.close()

    async def _send_and_wait(self, blocking: BlockingConnection, order: Mapping[str, Any], patience: float) -> str:
        scripts = self._visit.scripts
        deadline = asyncio.get_running_loop().time() + patience
        order_id = uuid.uuid4().hex
        await send(scripts, supervisor=self.name, order_id=order_id, order=order, patience=patience)
        seconds = patience + _EXTRA_SECONDS
        answer = await wait_for_answer(scripts, blocking, order_id=order_id, seconds=seconds)
        match answer:
            case None:
                raise SupervisionError(
                    f"not done within {patience:g} s. If the order has started, it runs to its end. If it has not (the "
                    "supervisor takes no orders), it is dropped. See the supervisor's log and `status`"
                )
            case {"ok": True, "text": str(text)}:
                if order["verb"] == "stop":
                    await self._until_ended(deadline, patience)
                    return "stopped"
                return one_line(text)
            case {"ok": False, "error": str(error), "kind": kind} if kind == USAGE:
                raise ConfigError(one_line(error))
            case {"ok": False, "error": str(error)}:
                raise SupervisionError(one_line(error))
            case other:
                raise SupervisionError(f"the answer is malformed: {one_line(str(other))[:200]}")

    async def _until_ended(self, deadline: float, patience: float) -> None:
        """Wait until the supervisor has withdrawn, or is lost."""
        loop = asyncio.get_running_loop()
        while True:
            found = next((one for one in await _known(self._visit) if one.name == self.name), None)
            if found is None:
                return
            if found.is_lost:
                raise SupervisionError(
                    f"it was asked to stop, and has been silent for {LOST_AFTER:g} s: it was killed, or is disconnected"
                )
            if loop.time() > deadline:
                raise SupervisionError(f"it was asked to stop, and is still stopping after {patience:g} s")
            await asyncio.sleep(_POLL_SECONDS)


async def read_status(redis: RedisConfig, selection: Selection) -> Status:
    """The status of the supervisors in a namespace: of all, or of the selected name. Raises `MailboxError`."""
    async with visiting(redis) as visit:
        known = await _known(visit)
        chosen = [one for one in known if selection.name in ("", one.name)]
        agents = [agent for one in chosen for agent in _agents(one.content.get("tree"))]
        served = {agent for one in known if not one.is_lost for agent in _agents(one.content.get("tree"))}
        unserved = sorted(await read_unserved(visit.scripts) - served)
        queues = await read_queues(visit.scripts, [*agents, *unserved])
        deferred = await read_deferred(visit.scripts, queues)
        memory = await read_memory(visit.scripts)
    missing = None if chosen else _not_found(selection, known, visit.place)
    return Status(chosen, queues, deferred, unserved, memory, missing)


@asynccontextmanager
async def reach(redis: RedisConfig, selection: Selection) -> AsyncIterator[list[Supervisor]]:
    """The selected supervisors, all alive, for the time of a `with` block. Raises `ConfigError` if the choice is not
    clear, `SupervisionError` if there is none, and `MailboxError`."""
    async with visiting(redis) as visit:
        yield [Supervisor(visit, one.name) for one in _choose(await _known(visit), selection, visit.place)]


async def _known(visit: Visit) -> list[Report]:
    reports = await read_all(visit.scripts)
    return [replace(one, content=checked_report(one.content)) for one in reports]


def _choose(known: Sequence[Report], selection: Selection, place: str) -> list[Report]:
    alive = [one for one in known if not one.is_lost]
    if selection.name:
        chosen = [one for one in alive if one.name == selection.name]
    elif len(alive) > 1 and not selection.all:
        raise ConfigError(f"{len(alive)} supervisors run in {place}: add --supervisor NAME or --all; {_names(known)}")
    else:
        chosen = alive
    if not chosen:
        raise _not_found(selection, known, place)
    return chosen


def _not_found(selection: Selection, known: Sequence[Report], place: str) -> SupervisionError:
    which = f"no supervisor {selection.name!r}" if selection.name else "no supervisor"
    return SupervisionError(f"{which} runs in {place}; {_names(known)}")


def _names(known: Sequence[Report]) -> str:
    if not known:
        return "none is known there: is it the right server and namespace?"
    names = (f"{one.name} (lost, last heard of {span(one.age)} ago)" if one.is_lost else one.name for one in known)
    return f"known there: {', '.join(names)}"


def _agents(node: Any) -> list[str]:
    """The names of the runners of a tree: each has the name of its agent."""
    children = (node or {}).get("children")
    if not isinstance(children, list):
        return []
    below = [agent for child in children for agent in _agents(child)]
    is_runner = any(child.get("type") == "worker" for child in children)
    return [*below, str(node["id"])] if is_runner else below
