"""The kernel of every actor: a mailbox, and a life of set-up, one message at a time, and tear-down.

    class Counter(Actor[int]):
        async def receive(self, message: int) -> None: ...

An actor shares no state: others `send` it messages, and it handles one after another. With an `interval`, it receives
a `Tick` when no message came for that long. An error that `recover` does not accept ends the actor, and with it the
process; the supervision tree starts a new one.
"""

import asyncio
import logging
from typing import Generic, TypeVar

from factorial.errors import MailboxFullError, MailboxUnavailableError

__all__ = ["Actor", "Tick"]

_Message = TypeVar("_Message")
_logger = logging.getLogger(__name__)


class Tick:
    """No message came for the actor's interval: do what is due."""


class Actor(Generic[_Message]):
    """One subject's state and its mailbox. `serve` runs until it is cancelled; start it once."""

    def __init__(self, name: str, interval: float | None = None) -> None:
        self.name = name
        self.interval = interval
        self._mailbox: asyncio.Queue[_Message | Tick] = asyncio.Queue()

    def send(self, message: _Message) -> None:
        """Put `message` into the actor's mailbox, and return at once."""
        self._mailbox.put_nowait(message)

    async def serve(self) -> None:
        """Set up, receive messages, tear down."""
        await self.set_up()
        try:
            while True:
                message = await self._next()
                try:
                    await self.receive(message)
                except (MailboxUnavailableError, MailboxFullError) as error:
                    self.recover(error)
        finally:
            await self.tear_down()

    async def _next(self) -> _Message | Tick:
        try:
            return await asyncio.wait_for(self._mailbox.get(), self.interval)
        except TimeoutError:
            return Tick()

    async def set_up(self) -> None:
        """Called before the first message."""

    async def receive(self, message: _Message | Tick) -> None:
        """Called with each message, one after another."""
        raise NotImplementedError

    async def tear_down(self) -> None:
        """Called after the last message, also when the actor fails."""

    def recover(self, error: MailboxUnavailableError | MailboxFullError) -> None:
        """Called when the server cannot be reached or is full. The actor goes on with its next message."""
        _logger.warning("%s: %s", self.name, error)
