"""The connection on which a process waits for work: one blocking command at a time, without a time limit."""

import asyncio
import logging
from typing import Any

from factorial.config import RedisConfig
from factorial.errors import MailboxError
from factorial.mailbox.transport.address import is_elsewhere, passes_by_itself, translate
from factorial.mailbox.transport.endpoint import Backoff, Endpoint
from factorial.mailbox.transport.link import Link, pack

__all__ = ["BlockingConnection"]

logger = logging.getLogger("factorial.mailbox")


class BlockingConnection:
    """A connection of its own for BLPOP and its kin. `await blocking.execute("BLPOP", key, seconds)`.

    Once open, it outlives every outage: it connects again until it succeeds, however long that takes, and then
    answers None, as if the time had run out. What the lost connection may have taken from the server is gone
    with it, so the caller looks for work before it waits again.
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
        """The server's answer to one command that may block it for so many `seconds` (None: for ever).

        None when the time is over or the connection was lost, also in silence: a server that says nothing for longer
        than it may is given up.

        Raises redis-py's `ResponseError` if the command is wrong in itself, and nothing else. Cancelling it gives
        the connection up, and with it what the server may be about to answer.
        """
        if self._reply is not None:
            raise RuntimeError("a BlockingConnection waits for one command at a time")
        payload = pack(args)
        if self._link is None:
            return await self._recover()
        self._reply = asyncio.get_running_loop().create_future()
        try:
            self._link.write(payload)
            async with asyncio.timeout(None if seconds is None else seconds + self.endpoint.timeout):
                reply = await self._reply
        except TimeoutError:
            if self._link is not None:  # else it was lost in the same moment: the event loop had stood still
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
        if not isinstance(error, MailboxError) and not passes_by_itself(reply):
            raise error
        logger.warning("waiting for work: %s", error)
        if is_elsewhere(reply) and self._link is not None:
            self.endpoint.route.doubt()
            self._link.abort()  # connecting again finds the server that serves us
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
        """Connect again, for as long as it takes."""
        attempts = 0
        while self._link is None:
            await self._backoff.pause()
            attempts += 1
            try:
                await self._connect()
            except MailboxError as failure:
                # Once per outage: an hour of them must not fill the log.
                logger.log(logging.WARNING if attempts == 1 else logging.DEBUG, "waiting for work: %s", failure)

    def _on_reply(self, reply: Any) -> None:
        if not isinstance(reply, Exception):
            self._backoff.reset()
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(reply)

    def _on_lost(self) -> None:
        self._link = None
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(None)
