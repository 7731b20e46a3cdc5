"""One open socket to the server: bytes out, parsed replies in. It knows nothing of commands and never reconnects.

A `Link` takes over the socket that a redis-py connection has opened and authenticated, and reads it by
callback: feeding the parser straight from the socket costs a tenth of reading reply by reply from a stream.
Made by `Endpoint.connect`.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
from redis._parsers import BaseParser
from redis.asyncio.connection import AbstractConnection

__all__ = ["Link", "pack"]

# A command as it goes over the wire. hiredis's own annotation allows for one argument only.
pack: Callable[[tuple[bytes | str | int | float, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]

_READ_SIZE = 65_536
_NOTHING = object()


class Link(asyncio.BufferedProtocol):
    """An open connection. `on_reply` gets each reply in order (an error reply as an exception object);
    `on_lost` is called once, when the connection has ended for whatever reason but `close()`.
    """

    def __init__(
        self, connection: AbstractConnection, on_reply: Callable[[Any], None], on_lost: Callable[[], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.paused = False
        """The socket takes no more for now: `on_writable` says when it does."""
        self.on_writable: Callable[[], None] | None = None
        self.last_received = loop.time()
        """When the last bytes came, by the loop's clock."""
        self.bytes_in = 0
        self._loop = loop
        self._on_reply = on_reply
        self._on_lost: Callable[[], None] | None = on_lost
        self._ended = loop.create_future()
        # A view, because TLS fills it piece by piece: a slice of a bytearray would be a copy.
        self._buffer = memoryview(bytearray(_READ_SIZE))
        self._parser = hiredis.Reader(replyError=BaseParser.parse_error, notEnoughData=_NOTHING)
        # The stream writer is kept: it closes the socket when it is collected.
        self._stream_writer, connection._writer, connection._reader = connection._writer, None, None
        assert self._stream_writer is not None
        self._transport = self._stream_writer.transport
        self._transport.set_protocol(self)
        if self._transport.is_closing():  # it was lost before we could hear of it
            loop.call_soon(self.connection_lost, None)

    def write(self, data: bytes) -> None:
        """Send `data`. What cannot be sent tells by `on_lost`."""
        self._transport.write(data)

    def abort(self) -> None:
        """Give the connection up, as lost: `on_lost` follows."""
        self._transport.abort()

    async def close(self) -> None:
        """End the connection for good; `on_lost` is not called."""
        self._on_lost = None
        # What the server has not taken by now, it will not be missed.
        self._transport.abort()
        await self._ended

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go (asyncio)."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """`nbytes` have come (asyncio)."""
        self.last_received = self._loop.time()
        self.bytes_in += nbytes
        parser, on_reply = self._parser, self._on_reply
        try:
            parser.feed(self._buffer, 0, nbytes)  # type: ignore[arg-type]  # any buffer will do
            while (reply := parser.gets()) is not _NOTHING:
                on_reply(reply)
        except hiredis.ProtocolError:
            # What comes is no Redis protocol, and nothing after it can be told apart.
            self.abort()

    def eof_received(self) -> bool:
        """The server has closed its side (asyncio): so do we."""
        return False

    def pause_writing(self) -> None:
        """The socket's buffer is full (asyncio)."""
        self.paused = True

    def resume_writing(self) -> None:
        """The socket takes bytes again (asyncio)."""
        self.paused = False
        if self.on_writable is not None:
            self.on_writable()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection has ended (asyncio)."""
        if not self._ended.done():
            self._ended.set_result(None)
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            on_lost()
