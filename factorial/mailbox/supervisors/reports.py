"""Supervisors in the mailbox: what each tells of its tree, and the orders that it is given from anywhere.

    report      every REPORT_INTERVAL (`report.lua`, `reports.lua`), until it ends (`withdraw.lua`)
    order       into the control mailbox of one supervisor (`order.lua`), which takes it from there (`Inbox`)
    answer      what became of an order (`answer.lua`)

An order is obeyed once, however often it is sent or found: it has an id. It carries the server's time, so one that has
waited for longer than its sender does is refused, not obeyed. Called by `supervisor/service/orders.py` on the
supervisor's side, and by `supervisor/operate/remote.py` on the operator's.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from factorial._core.json import dump_json, load_json
from factorial._core.text import shorten
from factorial.errors import ConfigError, MailboxFullError, SupervisionError
from factorial.mailbox.script import Scripts
from factorial.mailbox.transport.blocking import BlockingConnection

__all__ = [
    "LOST_AFTER", "REPORT_INTERVAL", "Heard", "Inbox", "MalformedOrder", "Order", "answer", "publish", "read_all",
    "send", "wait_for_answer", "withdraw",
]  # fmt: skip

REPORT_INTERVAL = 2.0
"""Seconds between two reports of a supervisor."""
LOST_AFTER = 3 * REPORT_INTERVAL
"""Seconds of silence after which a supervisor is taken for lost."""

_FORGOTTEN_AFTER = 3600.0
_ANSWER_TTL = 600.0
_MAX_REPORT = 4_000_000
_MAX_ORDER = 10_000
_MAX_ANSWER = 4_000
_MAX_WAITING = 100
_REMEMBERED = 1_000
_PATIENCE = 5
"""Seconds that one blocking command waits."""
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


@dataclass(frozen=True, slots=True)
class Heard:
    """A supervisor, as it has last told of itself."""

    name: str
    age: float
    """Seconds since then, on the server's clock."""
    report: dict[str, Any]

    @property
    def is_lost(self) -> bool:
        """Whether it has missed so many reports that it must be dead, or out of the server's reach."""
        return self.age > LOST_AFTER


async def publish(scripts: Scripts, *, supervisor: str, report: Mapping[str, Any]) -> None:
    """Tell how the tree of `supervisor` is. A report that is too large goes without its tree's children."""
    written = dump_json(dict(report))
    if len(written) > _MAX_REPORT:
        written = dump_json({**report, "tree": {**report["tree"], "children": []}})
    await scripts.run("report", _checked(supervisor), written, _ms(_FORGOTTEN_AFTER))


async def withdraw(scripts: Scripts, *, supervisor: str) -> None:
    """The supervisor has ended, as it should: forget it."""
    await scripts.run("withdraw", _checked(supervisor))


async def read_all(scripts: Scripts) -> list[Heard]:
    """All supervisors that are known, by name: also lost ones, for an hour."""
    told = await scripts.run("reports")
    heard = []
    for name, age, written in zip(told[::3], told[1::3], told[2::3], strict=True):
        report, readable = _mapping(written), name.decode(errors="replace")
        if report is not None and _NAME.fullmatch(readable):
            heard.append(Heard(readable, max(0.0, int(age) / 1000), report))
    return sorted(heard, key=lambda one: one.name)


# The operator's side.


async def send(scripts: Scripts, *, supervisor: str, order_id: str, order: Mapping[str, Any], patience: float) -> None:
    """Give `order` to the supervisor. The same `order_id` again changes nothing.

    `patience`: seconds after which it is not to be obeyed any more. Raises `SupervisionError` if there is no such
    supervisor, and `MailboxFullError` if it does not take up what it was sent.
    """
    written = dump_json({"id": _checked(order_id), "patience": patience, "order": dict(order)})
    if len(written) > _MAX_ORDER:
        raise SupervisionError(f"the order has {len(written)} bytes, and {_MAX_ORDER} is the most")
    outcome = await scripts.run("order", _checked(supervisor), order_id, written, _ms(patience), _MAX_WAITING)
    if outcome[0] == b"UNKNOWN":
        raise SupervisionError(f"there is no supervisor {supervisor!r} (any more)")
    if outcome[0] == b"FULL":
        raise MailboxFullError(
            f"supervisor {supervisor!r} has {outcome[1]} orders waiting, and takes none up: "
            "look at its log, or stop it with a signal"
        )


async def wait_for_answer(
    scripts: Scripts, blocking: BlockingConnection, *, order_id: str, seconds: float
) -> dict[str, Any] | None:
    """What became of the order; None if nothing was heard within `seconds`."""
    # To move an element onto its own place is to read it as soon as it is there: an answer that is lost on its way can
    # be asked for again.
    key = scripts.keys.answer(_checked(order_id))
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while (left := deadline - loop.time()) > 0:
        pause = max(0.05, min(left, _PATIENCE))
        try:
            async with asyncio.timeout(left + 1):
                found = await blocking.execute("BLMOVE", key, key, "LEFT", "LEFT", f"{pause:.3f}", seconds=pause)
        except TimeoutError:
            return None
        if found is not None:
            return _mapping(found)
    return None


# The supervisor's side.


@dataclass(frozen=True, slots=True)
class Order:
    """What a supervisor is asked to do."""

    id: str
    content: dict[str, Any]
    age: float
    """Seconds since it was given, on the server's clock."""
    patience: float
    """Seconds for which it is worth obeying."""

    @property
    def is_stale(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.age > self.patience


class MalformedOrder(ValueError):
    """Something in the control mailbox that is no order, and cannot be answered."""


class Inbox:
    """The control mailbox of one supervisor."""

    def __init__(self, scripts: Scripts, blocking: BlockingConnection, supervisor: str) -> None:
        self._scripts = scripts
        self._blocking = blocking
        self._key = scripts.keys.orders(_checked(supervisor))
        self._taken: OrderedDict[str, None] = OrderedDict()
        self._done_with: bytes | None = None

    async def next(self) -> Order:
        """The next order, each once. Waits for it, also through an outage of the server.

        Raises `MalformedOrder`, and `MailboxError` if the server went away in the middle; the call after that goes on
        where this one was.
        """
        while True:
            await self._remove()
            # Found, but not removed yet: it cannot be lost with a connection. What was taken before is known by its id.
            found = await self._blocking.execute(
                "BLMOVE", self._key, self._key, "LEFT", "LEFT", _PATIENCE, seconds=_PATIENCE
            )
            if found is None:
                continue
            seconds, microseconds = await self._scripts.commands.execute("TIME")
            self._done_with = found
            order = _order(found, now=int(seconds) + int(microseconds) / 1e6)
            if order.id not in self._taken:
                self._taken[order.id] = None
                if len(self._taken) > _REMEMBERED:
                    self._taken.popitem(last=False)
                return order

    async def _remove(self) -> None:
        """Remove what was found last."""
        if self._done_with is not None:
            await self._scripts.commands.execute("LREM", self._key, 1, self._done_with)
            self._done_with = None


async def answer(scripts: Scripts, *, order_id: str, text: str = "", error: str = "", kind: str = "") -> None:
    """Say that the order was carried out, and what was done; or, with an `error`, why it was not, and of what kind that
    is."""
    said: dict[str, Any] = {"ok": not error}
    said |= {"error": shorten(error, _MAX_ANSWER)} if error else {"text": shorten(text, _MAX_ANSWER)}
    if kind:
        said["kind"] = kind
    await scripts.run("answer", order_id, dump_json(said), _ms(_ANSWER_TTL))


def _order(found: bytes, now: float) -> Order:
    given, _, written = found.partition(b" ")
    content = _mapping(written)
    match content:
        case {"id": str(order_id), "patience": int() | float() as patience, "order": dict(order)} if (
            given.isdigit() and _NAME.fullmatch(order_id)
        ):
            return Order(order_id, order, max(0.0, now - int(given) / 1000), float(patience))
    raise MalformedOrder(shorten(repr(found), 200))


def _mapping(written: bytes) -> dict[str, Any] | None:
    """The JSON object, or None if it is something else."""
    try:
        value = load_json(written)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name[:140]!r} cannot be a supervisor: use 1 to 128 letters, digits, '_', '.', ':' or '-'")
    return name


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
