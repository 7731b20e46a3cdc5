"""Orders to supervisors, and their outcomes.

    order       is put into the control mailbox of one supervisor (`order.lua`), which takes it from there (`Inbox`)
    answer      is the outcome of an order (`answer.lua`)

An order has an id, and is obeyed once, however often it is sent or found. It carries the server's time: an order that
has waited for longer than its sender waits is refused. Called by the supervisor, and by the commands that operate it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from factorial._core.json import dump_json
from factorial._core.text import shorten
from factorial.errors import MailboxFullError, SupervisionError
from factorial.mailbox.script import Scripts
from factorial.mailbox.supervisors.reports import checked_name, is_name, json_object
from factorial.mailbox.transport.blocking import BlockingConnection

__all__ = ["Inbox", "MalformedOrder", "Order", "answer", "send", "wait_for_answer"]

_ANSWER_TTL_MS = 600_000
_MAX_ORDER = 10_000
_MAX_ANSWER = 4_000
_MAX_UNREAD = 100
_REMEMBERED = 1_000
_BLOCKING_SECONDS = 5
"""Seconds for which one blocking command waits."""


# The operator's side.


async def send(scripts: Scripts, *, supervisor: str, order_id: str, order: Mapping[str, Any], patience: float) -> None:
    """Send `order` to the supervisor. The same `order_id` again changes nothing.

    `patience`: seconds after which it must not be obeyed any more. Raises `SupervisionError` if there is no such
    supervisor, and `MailboxFullError` if the supervisor takes no orders.
    """
    written = dump_json({"id": checked_name(order_id), "patience": patience, "order": dict(order)})
    if len(written) > _MAX_ORDER:
        raise SupervisionError(f"the order has {len(written)} bytes, and {_MAX_ORDER} is the most")
    answer = await scripts.run("order", checked_name(supervisor), order_id, written, _ms(patience), _MAX_UNREAD)
    if answer[0] == b"UNKNOWN":
        raise SupervisionError(f"there is no supervisor {supervisor!r} (any more)")
    if answer[0] == b"FULL":
        raise MailboxFullError(
            f"supervisor {supervisor!r} has {answer[1]} orders waiting, and takes none: "
            "look at its log, or stop it with a signal"
        )


async def wait_for_answer(
    scripts: Scripts, blocking: BlockingConnection, *, order_id: str, seconds: float
) -> dict[str, Any] | None:
    """The outcome of the order, or None if there is none within `seconds`."""
    # Moving an element onto its own place reads it as soon as it exists, without removing it: if the reply is lost, the
    # element can be read again.
    key = scripts.keys.answer(checked_name(order_id))
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while (left := deadline - loop.time()) > 0:
        pause = max(0.05, min(left, _BLOCKING_SECONDS))
        try:
            async with asyncio.timeout(left + 1):
                found = await blocking.execute("BLMOVE", key, key, "LEFT", "LEFT", f"{pause:.3f}", seconds=pause)
        except TimeoutError:
            return None
        if found is not None:
            return json_object(found)
    return None


# The supervisor's side.


@dataclass(frozen=True, slots=True)
class Order:
    """An order as a supervisor finds it."""

    id: str
    content: dict[str, Any]
    age: float
    """Seconds since it was sent, by the server's clock."""
    patience: float
    """Seconds after which it must not be obeyed any more."""

    @property
    def is_stale(self) -> bool:
        """Whether its sender does not wait for it any more."""
        return self.age > self.patience


class MalformedOrder(ValueError):
    """An element of the control mailbox that is not an order, and cannot be answered."""


class Inbox:
    """Reads the control mailbox of one supervisor."""

    def __init__(self, scripts: Scripts, blocking: BlockingConnection, supervisor: str) -> None:
        self._scripts = scripts
        self._blocking = blocking
        self._key = scripts.keys.orders(checked_name(supervisor))
        self._taken: OrderedDict[str, None] = OrderedDict()
        self._to_remove: bytes | None = None

    async def next(self) -> Order:
        """Wait for the next order, also through an outage of the server. Returns each order once.

        Raises `MalformedOrder`, and `MailboxError` if the connection is lost in the middle; the next call continues
        from there.
        """
        while True:
            await self._remove_last()
            # The order is read without being removed, so it cannot be lost with a connection. Orders that were taken
            # before are recognised by their ids.
            found = await self._blocking.execute(
                "BLMOVE", self._key, self._key, "LEFT", "LEFT", _BLOCKING_SECONDS, seconds=_BLOCKING_SECONDS
            )
            if found is None:
                continue
            seconds, microseconds = await self._scripts.commands.execute("TIME")
            self._to_remove = found
            order = _order(found, now=int(seconds) + int(microseconds) / 1e6)
            if order.id not in self._taken:
                self._taken[order.id] = None
                if len(self._taken) > _REMEMBERED:
                    self._taken.popitem(last=False)
                return order

    async def _remove_last(self) -> None:
        """Remove the order that was read last."""
        if self._to_remove is not None:
            await self._scripts.commands.execute("LREM", self._key, 1, self._to_remove)
            self._to_remove = None


async def answer(scripts: Scripts, *, order_id: str, text: str = "", error: str = "", kind: str = "") -> None:
    """Store the outcome of an order: `text` says what was done; `error` and its `kind`, why nothing was done."""
    outcome: dict[str, Any] = {"ok": not error}
    outcome |= {"error": shorten(error, _MAX_ANSWER)} if error else {"text": shorten(text, _MAX_ANSWER)}
    if kind:
        outcome["kind"] = kind
    await scripts.run("answer", order_id, dump_json(outcome), _ANSWER_TTL_MS)


def _order(found: bytes, now: float) -> Order:
    sent_at, _, written = found.partition(b" ")
    match json_object(written):
        case {"id": str(order_id), "patience": int() | float() as patience, "order": dict(order)} if (
            sent_at.isdigit() and is_name(order_id)
        ):
            return Order(order_id, order, max(0.0, now - int(sent_at) / 1000), float(patience))
    raise MalformedOrder(shorten(repr(found), 200))


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
