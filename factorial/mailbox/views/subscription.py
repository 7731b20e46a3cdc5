"""An owner's events as they happen, without a gap: the stored ones first, then the live ones.

The owner's stream is the truth; pub/sub only brings news quickly. A subscription reads the stream up to its end, then
hears the channel; whenever it may have missed something (a lost connection, a reader slower than the news) it reads
the stream again from where it stands. Called by `orchestrator.subscribe_to_updates`.
"""

import asyncio
import logging
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from factorial._core.json import load_json
from factorial.errors import ConfigError
from factorial.events import EventType, QueueEvent
from factorial.mailbox.script import Scripts
from factorial.mailbox.transport.listener import Listener

__all__ = ["EventFilter", "Position", "activity_since", "end_of_events", "subscribe"]

_logger = logging.getLogger("factorial.mailbox")

_PAGE = 500
_MOST_WAITING = 1000


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in an owner's stream, just behind the event with this id."""

    ms: int
    seq: int

    @classmethod
    def after(cls, event_id: str) -> "Position":
        """Behind the event `event_id` (`'0'`: before all). Raises `ConfigError` if it is none."""
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
        """Behind the next id that there can be."""
        return Position(self.ms, self.seq + 1) if self.seq < 2**63 else Position(self.ms + 1, 0)

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"


class EventFilter:
    """Which events a subscriber wants: those that pass every filter given."""

    def __init__(
        self, task_ids: Collection[str] | None, event_types: Collection[str] | None, event_pattern: str | None
    ) -> None:
        self.task_ids: frozenset[str] | None = _as_set("task_ids", task_ids)
        self.event_types: frozenset[str] | None = _as_set("event_types", event_types)
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


async def subscribe(
    scripts: Scripts, listener: Listener, owner_id: str, start: Position, wanted: EventFilter
) -> AsyncGenerator[dict[str, Any], None]:
    """The owner's events from behind `start` on, in order, each once."""
    news = _News()
    channel = scripts.keys.channel(owner_id)
    await listener.subscribe(channel, news.hear, news.miss)
    try:
        position = start
        while True:
            if news.missed:
                news.start_over()
                async for event in _stored(scripts, owner_id, position):
                    if event["event_type"] == EventType.SUBSCRIPTION_GAP:
                        yield event
                        continue
                    position = Position.after(event["id"])
                    if wanted.passes(event):
                        yield event
                continue  # what was missed meanwhile comes before what was heard meanwhile
            for event in filter(None, map(_read, news.take())):
                if event_id := event["id"]:
                    if Position.after(event_id) <= position:
                        continue
                    position = Position.after(event_id)
                if wanted.passes(event):
                    yield event
            await news.arrival()
    finally:
        await listener.unsubscribe(channel, news.hear)


class _News:
    """What the channel brought and the subscriber has not read yet."""

    def __init__(self) -> None:
        self.missed = True
        self._waiting: deque[bytes] = deque()
        self._arrived = asyncio.Event()

    def hear(self, message: bytes) -> None:
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append(message)
            self._arrived.set()
        else:
            self.miss()

    def miss(self) -> None:
        self.missed = True
        self._arrived.set()

    def start_over(self) -> None:
        self.missed = False
        self._waiting.clear()

    def take(self) -> list[bytes]:
        taken = list(self._waiting)
        self._waiting.clear()
        return taken

    async def arrival(self) -> None:
        if not self._waiting and not self.missed:
            self._arrived.clear()
            await self._arrived.wait()


def _read(raw: bytes) -> dict[str, Any] | None:
    """The event, or None if it is none: one that was damaged, or was put there by somebody else, is passed over."""
    try:
        event = load_json(raw)
    except ValueError:
        event = None
    if isinstance(event, dict) and {"event_type", "task_id"} <= event.keys():
        return {"id": None, **event}
    _logger.warning("an event that cannot be read is passed over: %r", raw[:100])
    return None


async def _stored(scripts: Scripts, owner_id: str, position: Position) -> AsyncIterator[dict[str, Any]]:
    """The stored events behind `position`, preceded by a `subscription_gap` if some of them are gone."""
    if lost := await _trimmed_behind(scripts, owner_id, position):
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


async def _trimmed_behind(scripts: Scripts, owner_id: str, position: Position) -> str | None:
    """The id up to which events behind `position` have been trimmed, or None if all are there.

    The server does not say which event was the last that it trimmed. Behind a position before the first kept one, all
    is there only if that one is the very next id.
    """
    try:
        about = await scripts.commands.execute("XINFO", "STREAM", scripts.keys.events(owner_id))
    except ResponseError:  # no such key: nothing was ever stored, or it is over and cannot be told apart
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
    """Behind the owner's newest event."""
    last = await scripts.commands.execute("XREVRANGE", scripts.keys.events(owner_id), "+", "-", "COUNT", 1)
    return Position.after(last[0][0].decode()) if last else Position(0, 0)


async def activity_since(scripts: Scripts, owner_id: str) -> str | None:
    """The event with which the owner's present or latest activity began: it went from no active run to one."""
    since = await scripts.commands.execute("HGET", scripts.keys.owner(owner_id), "active_since")
    return since.decode() if since else None
