"""An owner's events without gaps: first the stored ones, then new ones as they are published.

The owner's stream is authoritative; pub/sub only makes delivery fast. A subscription reads the stream up to its end,
then listens to the channel. Whenever it may have missed a message (a lost connection, a slow reader), it reads the
stream again from its position. Called by `orchestrator.subscribe_to_updates`.
"""

import asyncio
import logging
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from redis.exceptions import ResponseError

from factorial._core.json import load_json
from factorial.errors import ConfigError
from factorial.events import CATALOGUE, EventType, QueueEvent
from factorial.mailbox.script import Scripts
from factorial.mailbox.transport.listener import Listener

__all__ = ["EventFilter", "Position", "activity_since", "end_of_events", "subscribe"]

_logger = logging.getLogger("factorial.mailbox")

_PAGE = 500
_MOST_UNREAD = 1000


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A position in an owner's stream, just after the event with this id."""

    ms: int
    seq: int

    @classmethod
    def after(cls, event_id: str) -> "Position":
        """Just after the event `event_id` (`'0'`: before all). Raises `ConfigError` for anything but an event id."""
        found = re.fullmatch(r"(\d{1,19})(?:-(\d{1,19}))?", event_id)
        if not found:
            raise ConfigError(f"after={event_id[:60]!r} is not an event id: use the 'id' of an update, '0' or '$'")
        return cls(int(found[1]), int(found[2] or 0))

    @classmethod
    def before(cls, event_id: str) -> "Position":
        """Just before the event `event_id`."""
        here = cls.after(event_id)
        return cls(here.ms, here.seq - 1) if here.seq else cls(max(here.ms - 1, 0), 2**63)

    def next(self) -> "Position":
        """Just after the smallest possible next id."""
        return Position(self.ms, self.seq + 1) if self.seq < 2**63 else Position(self.ms + 1, 0)

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"


class EventFilter:
    """The events that a subscriber wants: those that pass every given filter."""

    def __init__(
        self, task_ids: Collection[str] | None, event_types: Collection[str] | None, event_pattern: str | None
    ) -> None:
        self.task_ids: frozenset[str] | None = _as_set("task_ids", task_ids)
        self.event_types: frozenset[str] | None = _as_set("event_types", event_types)
        for name in (self.event_types or frozenset()) - CATALOGUE.keys():
            _warn_of_unknown(name)
        try:
            self.pattern: re.Pattern[str] | None = re.compile(event_pattern) if event_pattern is not None else None
        except re.error as invalid:
            raise ConfigError(f"event_pattern={event_pattern!r} is not a regular expression: {invalid}") from None

    def passes(self, event: dict[str, Any]) -> bool:
        """Whether the subscriber wants `event`."""
        event_type = event["event_type"]
        return (
            (self.task_ids is None or event["task_id"] in self.task_ids)
            and (self.event_types is None or event_type in self.event_types)
            and (self.pattern is None or self.pattern.match(event_type) is not None)
        )


def _as_set(name: str, values: Collection[str] | None) -> frozenset[str] | None:
    if values is None:
        return None
    if isinstance(values, str):
        raise ConfigError(f"{name}={values!r}: give a list of strings")
    return frozenset(values)


@lru_cache(maxsize=1000)
def _warn_of_unknown(event_type: str) -> None:
    """Once for each name: a page that reconnects subscribes with the same names again."""
    _logger.warning(
        "event_types has %.200r, which Factorial does not publish: it selects only events of your own by this name; "
        "docs/reference/events.md lists the types",
        event_type,
    )


async def subscribe(
    scripts: Scripts, listener: Listener, owner_id: str, start: Position, wanted: EventFilter
) -> AsyncGenerator[dict[str, Any], None]:
    """The owner's events after `start`, in order, each once. The iteration ends when `listener` is closed."""
    inbox = _Inbox()
    channel = scripts.keys.channel(owner_id)
    await listener.subscribe(channel, inbox.hear, inbox.miss)
    try:
        position = start
        while not listener.is_closed:
            if inbox.missed:
                inbox.start_over()
                async for event in _stored(scripts, owner_id, position):
                    if event["event_type"] == EventType.SUBSCRIPTION_GAP:
                        yield event
                        continue
                    position = Position.after(event["id"])
                    if wanted.passes(event):
                        yield event
                continue  # if messages were missed meanwhile, the stream has them before those that were heard
            for event in filter(None, map(_read, inbox.take())):
                if event_id := event["id"]:
                    if Position.after(event_id) <= position:
                        continue
                    position = Position.after(event_id)
                if wanted.passes(event):
                    yield event
            await inbox.arrival()
    finally:
        await listener.unsubscribe(channel, inbox.hear)


class _Inbox:
    """Messages of the channel that the subscriber has not read."""

    def __init__(self) -> None:
        self.missed = True
        self._unread: deque[bytes] = deque()
        self._arrived = asyncio.Event()

    def hear(self, message: bytes) -> None:
        if len(self._unread) < _MOST_UNREAD:
            self._unread.append(message)
            self._arrived.set()
        else:
            self.miss()

    def miss(self) -> None:
        self.missed = True
        self._arrived.set()

    def start_over(self) -> None:
        self.missed = False
        self._unread.clear()

    def take(self) -> list[bytes]:
        taken = list(self._unread)
        self._unread.clear()
        return taken

    async def arrival(self) -> None:
        if not self._unread and not self.missed:
            self._arrived.clear()
            await self._arrived.wait()


def _read(raw: bytes) -> dict[str, Any] | None:
    """The event, or None for a message that is not one: it is damaged, or another program sent it."""
    try:
        event = load_json(raw)
    except ValueError:
        event = None
    if isinstance(event, dict) and {"event_type", "task_id"} <= event.keys():
        return {"id": None, **event}
    _logger.warning("an event that cannot be read is skipped: %r", raw[:100])
    return None


async def _stored(scripts: Scripts, owner_id: str, position: Position) -> AsyncIterator[dict[str, Any]]:
    """The stored events after `position`, preceded by a `subscription_gap` if some of them were trimmed."""
    if lost := await _trimmed_after(scripts, owner_id, position):
        gap = QueueEvent(
            event_type=EventType.SUBSCRIPTION_GAP, owner_id=owner_id, data={"after": str(position), "lost_up_to": lost}
        )
        yield {**gap.to_dict(), "id": None}
    while True:
        page = await scripts.commands.execute(
            "XRANGE", scripts.keys.events(owner_id), f"({position}", "+", "COUNT", _PAGE
        )
        for event_id, parts in page:
            position = Position.after(event_id.decode())
            if event := _read(parts[1]):
                yield {**event, "id": event_id.decode()}
        if len(page) < _PAGE:
            return


async def _trimmed_after(scripts: Scripts, owner_id: str, position: Position) -> str | None:
    """The id up to which events after `position` were trimmed, or None if all of them are stored.

    The server does not say which event it trimmed last. After a position before the first stored event, nothing was
    trimmed only if that event has the very next id.
    """
    try:
        about = await scripts.commands.execute("XINFO", "STREAM", scripts.keys.events(owner_id))
    except ResponseError:  # no such key: nothing was ever stored, or it has expired, which looks the same
        return None
    names = {name: value for name, value in zip(about[::2], about[1::2], strict=True)}
    if position == Position(0, 0) or names[b"entries-added"] == names[b"length"]:
        return None
    if not names[b"length"]:
        last = Position.after(names[b"last-generated-id"].decode())
        return str(last) if last > position else None
    first = Position.after(names[b"first-entry"][0].decode())
    return str(Position.before(str(first))) if position.next() < first else None


async def end_of_events(scripts: Scripts, owner_id: str) -> Position:
    """Just after the owner's newest event."""
    last = await scripts.commands.execute("XREVRANGE", scripts.keys.events(owner_id), "+", "-", "COUNT", 1)
    return Position.after(last[0][0].decode()) if last else Position(0, 0)


async def activity_since(scripts: Scripts, owner_id: str) -> str | None:
    """The event with which the owner's present or latest activity began: the first active run was enqueued."""
    since = await scripts.commands.execute("HGET", scripts.keys.owner(owner_id), "active_since")
    return since.decode() if since else None
