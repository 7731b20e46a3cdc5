"""A small TCP proxy between a client and a server, to cut, to mutilate and to stall what passes through."""

import asyncio
import contextlib
import random
import ssl
from types import TracebackType
from typing import Self

__all__ = ["Proxy"]


class Proxy:
    """`async with Proxy(server_port) as proxy`: a client connects to `proxy.url`. With `tls`, it speaks TLS to it."""

    def __init__(self, server_port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self.server_port = server_port
        """Where new connections lead."""
        self._tls = tls
        self._listener: asyncio.Server | None = None
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._to_truncate: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._replies_pass = asyncio.Event()
        self._replies_pass.set()
        self.port = 0
        self.connections = 0
        self.requests = bytearray()
        self.poison: bytes | None = None
        """A request that contains these bytes ends every connection instead of reaching the server."""
        self.pause = 0.0
        """Seconds between two pieces of an answer (of at most 64 KB)."""
        self.delay = 0.0
        """Seconds for which each piece is held back, whichever way it goes."""
        self.cuts = 0
        """Connections that were cut, the truncated ones among them."""
        self.truncated = 0

    @property
    def url(self) -> str:
        return f"{'rediss' if self._tls else 'redis'}://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._listener is not None
        self._listener.close()
        self.cut()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def cut(self, share: float = 1.0) -> None:
        """End every connection there is, at once, or a share of them by chance; new ones are accepted."""
        chosen = [pair for pair in self._pairs if share == 1.0 or random.random() < share]
        self._pairs = [pair for pair in self._pairs if pair not in chosen]
        self.cuts += len(chosen)
        for writer in (writer for pair in chosen for writer in pair):
            writer.transport.abort()

    def truncate(self) -> None:
        """Of each connection there is, only half of the next piece arrives, whichever way it goes; then it ends."""
        self._to_truncate.update(writer for pair in self._pairs for writer in pair)

    def hold_replies(self) -> None:
        """From now on requests reach the server, and its answers do not come back."""
        self._replies_pass.clear()

    def pass_replies(self) -> None:
        """Let answers through again, those held back first."""
        self._replies_pass.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.server_port)
        except OSError:  # nobody listens there just now
            writer.transport.abort()
            return
        self._pairs.append((writer, server_writer))
        for pump in (self._requests(reader, server_writer), self._replies(server_reader, writer)):
            task = asyncio.create_task(pump)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _requests(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                self.requests += data
                if self.poison is not None and self.poison in data:
                    self.cut()
                    return
                if not await self._pass(data, target):
                    return
        target.transport.abort()

    async def _replies(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                await self._replies_pass.wait()
                await asyncio.sleep(self.pause)
                if not await self._pass(data, target):
                    return
        target.transport.abort()

    async def _pass(self, data: bytes, target: asyncio.StreamWriter) -> bool:
        """Hand the piece on. Tells whether the connection is still whole."""
        await asyncio.sleep(self.delay)
        if target in self._to_truncate:
            self._pairs = [pair for pair in self._pairs if target not in pair]
            self.cuts += 1
            self.truncated += 1
            target.write(data[: len(data) // 2])
            target.close()
            return False
        target.write(data)
        await target.drain()
        return True
