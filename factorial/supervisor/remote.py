"""Operating a running system from anywhere: `python -m factorial.supervisor status|drain|resume|scale|restart|stop`.

All that is needed is the server that holds the mailboxes. Orders are messages to a supervisor's control mailbox; the
status is what the supervisors have last told. No agent is imported, and no server is started.
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
from factorial.supervisor.nodes import checked_report
from factorial.supervisor.orders import USAGE, shown
from factorial.supervisor.status import Subject, draw, span

__all__ = ["Selection", "give_order", "show_status"]

_POLL = 0.2
_GRACE_SECONDS = 1.0
"""How long after the end of our patience we still listen: the supervisor then tells whether it has begun."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of the supervisors are meant. Neither a name nor all of them: the only one that lives."""

    name: str = ""
    all: bool = False


async def _known(visit: Visit) -> list[Heard]:
    heard = await supervisors.read_all(visit.scripts)
    return [replace(one, report=checked_report(one.report)) for one in heard]


async def show_status(redis: RedisConfig, selection: Selection, *, as_json: bool) -> int:
    """Print how the supervisors and their trees are. 0 if one of them is alive, else 1."""
    async with visiting(redis) as visit:
        known = await _known(visit)
        chosen = [one for one in known if selection.name in ("", one.name)]
        agents = [agent for one in chosen for agent in _agents(one.report.get("tree"))]
        queues = await read_queues(visit.scripts, agents)
    if as_json:
        print(dump_json(_plain(chosen, queues)).decode())
    else:
        subjects = [Subject(one.report, one.age, one.is_lost) for one in chosen]
        # Without any supervisor, waiting tasks are still worth knowing of.
        counts = {agent: astuple(queue) for agent, queue in queues.items()}
        show(draw(subjects, counts))
    if not chosen:
        raise _none_such(selection, known, visit.place)
    return 0 if any(not one.is_lost for one in chosen) else 1


async def give_order(redis: RedisConfig, selection: Selection, order: Mapping[str, Any], *, patience: float) -> int:
    """Give `order` to the supervisors that are meant, and print each one's answer.

    0 if all have carried it out, 2 if one of them says that it is asked for in a wrong way, else 1. `patience`: seconds
    to wait for each. A stop is waited for until the supervisor has ended.
    """
    async with visiting(redis) as visit:
        chosen = _choose(await _known(visit), selection, visit.place)
        outcomes = await asyncio.gather(*(_order(visit, one.name, order, patience) for one in chosen))
    return max(outcomes)


def _choose(known: Sequence[Heard], selection: Selection, place: str) -> list[Heard]:
    """The supervisors that are meant, all alive. Raises `ConfigError` if that is not clear, or `SupervisionError`."""
    alive = [one for one in known if not one.is_lost]
    if selection.name:
        chosen = [one for one in alive if one.name == selection.name]
    elif len(alive) > 1 and not selection.all:
        raise ConfigError(f"{len(alive)} supervisors run in {place}: add --supervisor NAME or --all; {_listed(known)}")
    else:
        chosen = alive
    if not chosen:
        raise _none_such(selection, known, place)
    return chosen


def _none_such(selection: Selection, known: Sequence[Heard], place: str) -> SupervisionError:
    which = f"no supervisor {selection.name!r}" if selection.name else "no supervisor"
    return SupervisionError(f"{which} runs in {place}; {_listed(known)}")


def _listed(known: Sequence[Heard]) -> str:
    if not known:
        return "none is known there: is it the right server and namespace?"
    shown = (f"{one.name} (lost, last heard of {span(one.age)} ago)" if one.is_lost else one.name for one in known)
    return f"known there: {', '.join(shown)}"


async def _order(visit: Visit, name: str, order: Mapping[str, Any], patience: float) -> int:
    """Give the order to one supervisor, and print its answer. The exit code, if it were for this one alone."""
    try:
        print(f"{name}: {await _obeyed(visit, name, order, patience)}", flush=True)
    except FactorialError as failure:
        print(f"factorial: {name}: {failure}", file=sys.stderr)
        return 2 if isinstance(failure, ConfigError) else 1
    return 0


async def _obeyed(visit: Visit, name: str, order: Mapping[str, Any], patience: float) -> str:
    blocking = await BlockingConnection.open(visit.redis)
    try:
        return await _asked(visit, blocking, name, order, patience)
    except asyncio.CancelledError:
        print(f"factorial: not waited for any more; {name} goes on with: {shown(order)}", file=sys.stderr)
        raise
    finally:
        await blocking.close()


async def _asked(
    visit: Visit, blocking: BlockingConnection, name: str, order: Mapping[str, Any], patience: float
) -> str:
    """What was done, in one line."""
    deadline = asyncio.get_running_loop().time() + patience
    order_id = uuid.uuid4().hex
    await supervisors.send(visit.scripts, supervisor=name, order_id=order_id, order=order, patience=patience)
    answer = await supervisors.wait_for_answer(
        visit.scripts, blocking, order_id=order_id, seconds=patience + _GRACE_SECONDS
    )
    match answer:
        case None:
            raise SupervisionError(
                f"not done within {patience:g} s. If it was begun, it goes on to its end; if not (the supervisor takes "
                "no orders), it is not begun any more: its log and `status` tell"
            )
        case {"ok": True, "text": str(text)}:
            if order["verb"] == "stop":
                await _has_ended(visit, name, deadline, patience)
                return "stopped"
            return one_line(text)
        case {"ok": False, "error": str(error), "kind": kind} if kind == USAGE:
            raise ConfigError(one_line(error))
        case {"ok": False, "error": str(error)}:
            raise SupervisionError(one_line(error))
        case other:
            raise SupervisionError(f"it gave an answer that is none: {one_line(str(other))[:200]}")


async def _has_ended(visit: Visit, name: str, deadline: float, patience: float) -> None:
    """Wait until the supervisor has withdrawn, or is lost."""
    loop = asyncio.get_running_loop()
    while True:
        found = next((one for one in await _known(visit) if one.name == name), None)
        if found is None:
            return
        if found.is_lost:
            raise SupervisionError(
                f"it was asked to stop, and has been silent for {LOST_AFTER:g} s: it was killed, or is cut off"
            )
        if loop.time() > deadline:
            raise SupervisionError(f"it was asked to stop, and is still stopping after {patience:g} s")
        await asyncio.sleep(_POLL)


def _agents(node: Any) -> list[str]:
    """The runners of a tree: each has the name of its agent."""
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
