"""The connection on which a process waits for work: one blocking command at a time, for any length of time."""

import asyncio
import logging
from typing import Any

from factorial.config import RedisConfig
from factorial.errors import MailboxError
from factorial.mailbox.transport.address import is_temporary, is_wrong_server, translate
from factorial.mailbox.transport.endpoint import Backoff, Endpoint
from factorial.mailbox.transport.link import Link, pack

__all__ = ["BlockingConnection"]

_logger = logging.getLogger("factorial.mailbox")


class BlockingConnection:
    """A connection for BLPOP and similar commands: `await blocking.execute("BLPOP", key, seconds)`.

    Once open, it survives every outage: it reconnects until it succeeds, however long that takes. The interrupted
    command then returns None, as if its time had run out. The server may have popped an element that the lost
    connection never delivered, so the caller looks for work before it waits again.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._link: Link | None = None
        self._reply: asyncio.Future[Any] | None = None
        self._backoff = Backoff()

    @classmethod
    async def open(cls, config: RedisConfig) -> "BlockingConnection":
        """Connect to the server of `config`. Raises as `Connection.open` does."""
        blocking = cls(Endpoint.of(config))
        await blocking._connect()
        return blocking

    async def execute(self, *args: bytes | str | int | float, seconds: float | None = None) -> Any:
        """The server's reply to one command, which blocks for at most `seconds` on the server (None: without limit).

        Returns None if the time is over or the connection was lost. A server that is silent for longer than `seconds`
        and the endpoint's `timeout` together counts as lost.

        Raises redis-py's `ResponseError` if the command itself is wrong, and nothing else. If the caller is cancelled,
        the connection is closed, and a reply on its way is dropped.
        """
        if self._reply is not None:
            raise RuntimeError("a BlockingConnection executes one command at a time")
        payload = pack(args)
        if self._link is None:
            return await self._recover()
        self._reply = asyncio.get_running_loop().create_future()
        try:
            self._link.write(payload)
            async with asyncio.timeout(None if seconds is None else seconds + self.endpoint.timeout):
                reply = await self._reply
        except TimeoutError:
            if self._link is not None:  # None: it was lost at the same moment, after the event loop was blocked
                self._link.abort()
            return None
        except asyncio.CancelledError:
            await self.close()
            raise
        finally:
            self._reply = None
        if not isinstance(reply, Exception):
            return reply
        error = translate(reply, self.endpoint.shown)
        if not isinstance(error, MailboxError) and not is_temporary(reply):
            raise error
        _logger.warning("waiting for work: %s", error)
        if is_wrong_server(reply) and self._link is not None:
            self.endpoint.route.invalidate()
            self._link.abort()  # reconnecting finds the server that has the namespace
        await self._backoff.pause()
        return None

    async def close(self) -> None:
        """Close the connection."""
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    async def _connect(self) -> None:
        self._link = await self.endpoint.connect(self._on_reply, self._on_lost)

    async def _recover(self) -> None:
        """Reconnect, without a time limit."""
        attempts = 0
        while self._link is None:
            await self._backoff.pause()
            attempts += 1
            try:
                await self._connect()
            except MailboxError as failure:
                # One warning per outage, so that a long one does not fill the log.
                _logger.log(logging.WARNING if attempts == 1 else logging.DEBUG, "waiting for work: %s", failure)

    def _on_reply(self, reply: Any) -> None:
        if not isinstance(reply, Exception):
            self._backoff.reset()
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(reply)

    def _on_lost(self) -> None:
        self._link = None
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(None)
