"""One pub/sub connection for all subscribers of a process.

Pub/sub does not store messages. After a lost connection the listener subscribes again and notifies each subscriber that
it may have missed messages (`on_gap`). The subscriber then reads the stored events.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from factorial.config import RedisConfig
from factorial.errors import MailboxError, MailboxUnavailableError
from factorial.mailbox.transport.address import translate
from factorial.mailbox.transport.endpoint import Backoff, Endpoint
from factorial.mailbox.transport.link import Link, pack

__all__ = ["Listener"]

_logger = logging.getLogger("factorial.mailbox")

_OnMessage = Callable[[bytes], None]
_OnGap = Callable[[], None]


class _Channel:
    """The subscribers of one channel. `confirmed` is done when the server has confirmed the subscription."""

    __slots__ = ("confirmed", "interrupted", "subscribers")

    def __init__(self, confirmed: "asyncio.Future[None]") -> None:
        self.subscribers: list[tuple[_OnMessage, _OnGap]] = []
        self.confirmed = confirmed
        self.interrupted = False


class Listener:
    """Calls the subscribers' callbacks for the messages on their channels. It belongs to the event loop that opened it.

    A callback runs in the event loop between two reads of the socket, so it must return quickly.
    """

    def __init__(self, endpoint: Endpoint, retry_for: float) -> None:
        self.endpoint = endpoint
        self._confirm_within = retry_for + endpoint.timeout
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = None
        self._channels: dict[bytes, _Channel] = {}
        # For each command without a reply, in order, the channel that it subscribes to; None for an unsubscription.
        self._expected: deque[_Channel | None] = deque()
        self._backoff = Backoff()
        self._reconnecting: asyncio.Task[None] | None = None
        self._pinged_at = 0.0
        self._check: asyncio.TimerHandle | None = None
        self._closed = False

    @classmethod
    async def open(cls, config: RedisConfig) -> "Listener":
        """Connect to the server of `config`. Raises as `Connection.open` does."""
        listener = cls(Endpoint.of(config), config.retry_for)
        await listener._connect()
        listener._check_for_silence()
        return listener

    async def subscribe(self, channel: str, on_message: _OnMessage, on_gap: _OnGap) -> None:
        """Call `on_message` with each message on `channel` from now on. Returns when the server has confirmed that.

        `on_gap` is called after an interruption, when the subscription works again: messages may have been missed.
        Raises `MailboxUnavailableError` if the server does not confirm, `MailboxRefusedError` if it refuses.
        """
        if self._closed:
            raise self._closed_error()
        name = channel.encode()
        entry = self._channels.get(name)
        if entry is None:
            entry = self._channels[name] = _Channel(self._loop.create_future())
            self._send(b"SUBSCRIBE", name, entry)
        entry.subscribers.append((on_message, on_gap))
        try:
            async with asyncio.timeout(self._confirm_within):
                # Several subscribers may wait for one confirmation, so a cancelled one must not cancel the future.
                await asyncio.shield(entry.confirmed)
        except TimeoutError:
            self._remove(name, on_message)
            raise MailboxUnavailableError(f"{self.endpoint.shown} does not confirm a subscription") from None
        except BaseException:
            self._remove(name, on_message)
            raise

    async def unsubscribe(self, channel: str, on_message: _OnMessage) -> None:
        """Stop calling `on_message`. An unknown subscription is ignored."""
        self._remove(channel.encode(), on_message)

    def reconnect(self) -> None:
        """Connect to the server that has the namespace now, and call each subscriber's `on_gap`.

        A cluster forwards messages between its nodes, but loses them while the network between two nodes is down. So
        the listener connects to the node on which they are published.
        """
        self.endpoint.route.invalidate()
        if self._link is not None:
            self._link.abort()

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, so that no message will come."""
        return self._closed

    async def close(self) -> None:
        """Close the connection, and call each subscriber's `on_gap`.

        A `subscribe` that still waits raises `MailboxUnavailableError`.
        """
        self._closed = True
        if self._check is not None:
            self._check.cancel()
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            await asyncio.wait([self._reconnecting])
        for entry in self._channels.values():
            _refuse(entry, self._closed_error())
            for _, on_gap in tuple(entry.subscribers):
                _call(on_gap)
        self._channels.clear()
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    def _remove(self, name: bytes, on_message: _OnMessage) -> None:
        entry = self._channels.get(name)
        if entry is None:
            return
        entry.subscribers = [pair for pair in entry.subscribers if pair[0] != on_message]
        if not entry.subscribers:
            del self._channels[name]
            self._send(b"UNSUBSCRIBE", name, None)

    def _send(self, verb: bytes, name: bytes, waiting: _Channel | None) -> None:
        # Without a link nothing is sent: `_connect` subscribes to all channels.
        if self._link is not None:
            self._expected.append(waiting)
            self._link.write(pack((verb, name)))

    def _on_reply(self, reply: Any) -> None:
        match reply:
            case [b"message", bytes(name), bytes(data)]:
                self._dispatch(name, data)
            case [b"subscribe" | b"unsubscribe", *_]:
                self._backoff.reset()
                entry = self._expected.popleft()
                if entry is not None:
                    self._confirm(entry)
            case Exception():
                # Most likely, the user has no permission for the channel: the caller of `subscribe` gets the error.
                refusal = translate(reply, self.endpoint.shown)
                _logger.warning("subscriptions: %s", refusal)
                entry = self._expected.popleft() if self._expected else None
                if entry is not None:
                    _refuse(entry, refusal)

    def _dispatch(self, name: bytes, data: bytes) -> None:
        entry = self._channels.get(name)
        for on_message, _ in tuple(entry.subscribers) if entry is not None else ():
            _call(on_message, data)

    def _confirm(self, entry: _Channel) -> None:
        if not entry.confirmed.done():
            entry.confirmed.set_result(None)
        if entry.interrupted:
            entry.interrupted = False
            for _, on_gap in tuple(entry.subscribers):
                _call(on_gap)

    async def _connect(self) -> None:
        self._link = await self.endpoint.connect(self._on_reply, self._on_lost)
        self._pinged_at = 0.0
        self._expected.clear()
        for name, entry in self._channels.items():
            self._send(b"SUBSCRIBE", name, entry)

    def _on_lost(self) -> None:
        self._link = None
        for entry in self._channels.values():
            if entry.confirmed.done():
                entry.confirmed = self._loop.create_future()
                entry.interrupted = True
        if self._reconnecting is None and not self._closed:
            self._reconnecting = self._loop.create_task(self._reconnect(), name="reconnect listener")

    async def _reconnect(self) -> None:
        """Reconnect and subscribe again, without a time limit. Each confirmation then calls `on_gap`."""
        attempts = 0
        try:
            while self._link is None:
                await self._backoff.pause()
                attempts += 1
                try:
                    await self._connect()
                except MailboxError as failure:
                    # One warning per outage, so that a long one does not fill the log.
                    _logger.log(logging.WARNING if attempts == 1 else logging.DEBUG, "subscriptions: %s", failure)
        finally:
            self._reconnecting = None

    def _check_for_silence(self) -> None:
        """Every `timeout` seconds: send PING to a silent server. If the latest PING has no reply, reconnect."""
        link, now = self._link, self._loop.time()
        if link is not None:
            if link.last_received < self._pinged_at:
                link.abort()
            elif now - link.last_received >= self.endpoint.timeout:
                self._pinged_at = now
                link.write(pack((b"PING",)))
        self._check = self._loop.call_later(self.endpoint.timeout, self._check_for_silence)

    def _closed_error(self) -> MailboxUnavailableError:
        return MailboxUnavailableError(f"the listener at {self.endpoint.shown} was closed")


def _refuse(entry: _Channel, reason: Exception) -> None:
    if not entry.confirmed.done():
        entry.confirmed.set_exception(reason)
        entry.confirmed.exception()  # marks it as retrieved, in case nobody waits for it


def _call(callback: Callable[..., None], *args: bytes) -> None:
    try:
        callback(*args)
    except Exception:
        # One subscriber's error must not keep the message from the others.
        _logger.exception("a subscriber's callback failed")
