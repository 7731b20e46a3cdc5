"""One open socket to the server: bytes out, parsed replies in. It does not match replies to commands or reconnect.

A `Link` takes over the socket that a redis-py connection has opened and authenticated. It feeds the parser from the
socket's callbacks, which costs a tenth of reading replies one by one from a stream.
Created by `Endpoint.connect`.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
from redis._parsers import BaseParser
from redis.asyncio.connection import AbstractConnection

__all__ = ["Link", "pack"]

# Encodes a command. hiredis's own annotation allows for one argument only.
pack: Callable[[tuple[bytes | str | int | float, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]

_READ_SIZE = 65_536
_NOTHING = object()


class Link(asyncio.BufferedProtocol):
    """An open socket. `on_reply` is called with each reply, in order. An error reply is an exception object.

    `on_lost` is called once, when the connection has ended for any reason other than `close()`.
    """

    def __init__(
        self, connection: AbstractConnection, on_reply: Callable[[Any], None], on_lost: Callable[[], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.paused: bool = False
        """Whether the socket's buffer is full. `on_writable` is called when it is not any more."""
        self.on_writable: Callable[[], None] | None = None
        self.last_received: float = loop.time()
        """When the latest bytes arrived, by the loop's clock."""
        self.bytes_in: int = 0
        self._loop = loop
        self._on_reply = on_reply
        self._on_lost: Callable[[], None] | None = on_lost
        self._ended = loop.create_future()
        # A memoryview, because TLS fills it in pieces: slicing a bytearray would copy it.
        self._buffer = memoryview(bytearray(_READ_SIZE))
        self._parser = hiredis.Reader(replyError=BaseParser.parse_error, notEnoughData=_NOTHING)
        # Keep the stream writer: it closes the socket when it is garbage-collected.
        self._stream_writer, connection._writer, connection._reader = connection._writer, None, None
        assert self._stream_writer is not None
        self._transport = self._stream_writer.transport
        self._transport.set_protocol(self)
        if self._transport.is_closing():  # it was lost before `set_protocol`
            loop.call_soon(self.connection_lost, None)

    def write(self, data: bytes) -> None:
        """Send `data`. If that fails, `on_lost` is called."""
        self._transport.write(data)

    def abort(self) -> None:
        """Drop the connection as if it were lost: `on_lost` is called."""
        self._transport.abort()

    async def close(self) -> None:
        """Close the connection. `on_lost` is not called."""
        self._on_lost = None
        # Nobody waits for replies any more, so unsent data may be dropped.
        self._transport.abort()
        await self._ended

    def get_buffer(self, sizehint: int) -> memoryview:
        """Called by asyncio: where to put the next bytes."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Called by asyncio: `nbytes` have arrived in the buffer."""
        self.last_received = self._loop.time()
        self.bytes_in += nbytes
        parser, on_reply = self._parser, self._on_reply
        try:
            parser.feed(self._buffer, 0, nbytes)  # type: ignore[arg-type]  # any buffer will do
            while (reply := parser.gets()) is not _NOTHING:
                on_reply(reply)
        except hiredis.ProtocolError:
            # The bytes are not Redis protocol, so the replies after them cannot be parsed either.
            self.abort()

    def eof_received(self) -> bool:
        """Called by asyncio: the server has closed its side. Close ours, too."""
        return False

    def pause_writing(self) -> None:
        """Called by asyncio: the socket's buffer is full."""
        self.paused = True

    def resume_writing(self) -> None:
        """Called by asyncio: the socket accepts bytes again."""
        self.paused = False
        if self.on_writable is not None:
            self.on_writable()

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio: the connection has ended."""
        if not self._ended.done():
            self._ended.set_result(None)
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            on_lost()
