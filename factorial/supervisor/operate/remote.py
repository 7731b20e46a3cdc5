"""Operates a running system from anywhere: `python -m factorial.supervisor status|drain|resume|scale|restart|stop`.

This needs only the server that holds the namespace. Orders are messages to a supervisor's control mailbox. The status
is made from the latest reports of the supervisors. No agent is imported, and no server is started.
"""

import asyncio
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

from factorial._core.json import dump_json
from factorial._core.text import one_line
from factorial.commandline import show
from factorial.config import RedisConfig
from factorial.errors import ConfigError, FactorialError, SupervisionError
from factorial.mailbox.supervisors import reports as supervisors
from factorial.mailbox.supervisors.reports import LOST_AFTER, Heard
from factorial.mailbox.transport.blocking import BlockingConnection
from factorial.mailbox.views.queues import Queue, read_queues
from factorial.mailbox.visit import Visit, visiting
from factorial.supervisor.operate.status import Subject, draw, span
from factorial.supervisor.operate.verbs import USAGE, summary
from factorial.supervisor.tree.nodes import checked_report

__all__ = ["Selection", "send_order", "show_status"]

_POLL_SECONDS = 0.2
_EXTRA_SECONDS = 1.0
"""How much longer than `patience` the sender listens, so that it hears whether the supervisor has dropped the order."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which supervisors an order is for. Without a name and without `all`: the only one that is alive."""

    name: str = ""
    all: bool = False


async def _known(visit: Visit) -> list[Heard]:
    heard = await supervisors.read_all(visit.scripts)
    return [replace(one, report=checked_report(one.report)) for one in heard]


async def show_status(redis: RedisConfig, selection: Selection, *, as_json: bool) -> int:
    """Print the status of the supervisors and their trees. Returns 0 if one of them is alive, else 1."""
    async with visiting(redis) as visit:
        known = await _known(visit)
        chosen = [one for one in known if selection.name in ("", one.name)]
        agents = [agent for one in chosen for agent in _agents(one.report.get("tree"))]
        queues = await read_queues(visit.scripts, agents)
    if as_json:
        print(dump_json(_plain(chosen, queues)).decode())
    else:
        subjects = [Subject(one.report, one.age, one.is_lost) for one in chosen]
        # The queues are shown also if no supervisor is known.
        counts = {agent: astuple(queue) for agent, queue in queues.items()}
        show(draw(subjects, counts))
    if not chosen:
        raise _not_found(selection, known, visit.place)
    return 0 if any(not one.is_lost for one in chosen) else 1


async def send_order(redis: RedisConfig, selection: Selection, order: Mapping[str, Any], *, patience: float) -> int:
    """Send `order` to the selected supervisors, and print the answer of each.

    Returns 0 if all have carried it out, 2 if the order is wrong in itself, such as an unknown target, else 1.
    `patience`: seconds to wait for each answer. A stop is done when the supervisor has ended.
    """
    async with visiting(redis) as visit:
        chosen = _choose(await _known(visit), selection, visit.place)
        codes = await asyncio.gather(*(_order_one(visit, one.name, order, patience) for one in chosen))
    return max(codes)


def _choose(known: Sequence[Heard], selection: Selection, place: str) -> list[Heard]:
    """The selected supervisors, all alive. Raises `ConfigError` if the choice is not clear, and `SupervisionError` if
    there is none."""
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


def _not_found(selection: Selection, known: Sequence[Heard], place: str) -> SupervisionError:
    which = f"no supervisor {selection.name!r}" if selection.name else "no supervisor"
    return SupervisionError(f"{which} runs in {place}; {_names(known)}")


def _names(known: Sequence[Heard]) -> str:
    if not known:
        return "none is known there: is it the right server and namespace?"
    names = (f"{one.name} (lost, last heard of {span(one.age)} ago)" if one.is_lost else one.name for one in known)
    return f"known there: {', '.join(names)}"


async def _order_one(visit: Visit, name: str, order: Mapping[str, Any], patience: float) -> int:
    """Send the order to one supervisor, and print its answer. Returns the exit code for this supervisor."""
    try:
        print(f"{name}: {await _answer(visit, name, order, patience)}", flush=True)
    except FactorialError as failure:
        print(f"factorial: {name}: {failure}", file=sys.stderr)
        return 2 if isinstance(failure, ConfigError) else 1
    return 0


async def _answer(visit: Visit, name: str, order: Mapping[str, Any], patience: float) -> str:
    blocking = await BlockingConnection.open(visit.redis)
    try:
        return await _send_and_wait(visit, blocking, name, order, patience)
    except asyncio.CancelledError:
        print(f"factorial: stopped waiting; {name} continues with: {summary(order)}", file=sys.stderr)
        raise
    finally:
        await blocking.close()


async def _send_and_wait(
    visit: Visit, blocking: BlockingConnection, name: str, order: Mapping[str, Any], patience: float
) -> str:
    """The answer to the order: what was done, in one line."""
    deadline = asyncio.get_running_loop().time() + patience
    order_id = uuid.uuid4().hex
    await supervisors.send(visit.scripts, supervisor=name, order_id=order_id, order=order, patience=patience)
    answer = await supervisors.wait_for_answer(
        visit.scripts, blocking, order_id=order_id, seconds=patience + _EXTRA_SECONDS
    )
    match answer:
        case None:
            raise SupervisionError(
                f"not done within {patience:g} s. If the order has started, it runs to its end. If it has not (the "
                "supervisor takes no orders), it is dropped. See the supervisor's log and `status`"
            )
        case {"ok": True, "text": str(text)}:
            if order["verb"] == "stop":
                await _until_ended(visit, name, deadline, patience)
                return "stopped"
            return one_line(text)
        case {"ok": False, "error": str(error), "kind": kind} if kind == USAGE:
            raise ConfigError(one_line(error))
        case {"ok": False, "error": str(error)}:
            raise SupervisionError(one_line(error))
        case other:
            raise SupervisionError(f"the answer is malformed: {one_line(str(other))[:200]}")


async def _until_ended(visit: Visit, name: str, deadline: float, patience: float) -> None:
    """Wait until the supervisor has withdrawn, or is lost."""
    loop = asyncio.get_running_loop()
    while True:
        found = next((one for one in await _known(visit) if one.name == name), None)
        if found is None:
            return
        if found.is_lost:
            raise SupervisionError(
                f"it was asked to stop, and has been silent for {LOST_AFTER:g} s: it was killed, or is disconnected"
            )
        if loop.time() > deadline:
            raise SupervisionError(f"it was asked to stop, and is still stopping after {patience:g} s")
        await asyncio.sleep(_POLL_SECONDS)


def _agents(node: Any) -> list[str]:
    """The names of the runners of a tree: each has the name of its agent."""
    children = (node or {}).get("children")
    if not isinstance(children, list):
        return []
    below = [agent for child in children for agent in _agents(child)]
    is_runner = any(child.get("type") == "worker" for child in children)
    return [*below, str(node["id"])] if is_runner else below


def _plain(chosen: Sequence[Heard], queues: Mapping[str, Queue]) -> dict[str, Any]:
    return {
        "supervisors": [{**one.report, "age": one.age, "lost": one.is_lost} for one in chosen],
        "queues": {agent: asdict(queue) for agent, queue in queues.items()},
    }
