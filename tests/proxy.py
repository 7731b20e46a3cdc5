"""A small TCP proxy between a client and a server, to cut, to mutilate and to stall what passes through."""

import asyncio
import contextlib
import random
import ssl
from collections.abc import Coroutine
from types import TracebackType
from typing import Self

__all__ = ["Between", "Proxy"]


class Between:
    """Stands between clients and a server: `async with` it, and have them connect to its `url`. With `tls`, they speak
    TLS to it. What it does with a connection is said by `accept`.
    """

    def __init__(self, server_port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self.server_port = server_port
        """Where new connections lead."""
        self.port = 0
        self._tls = tls
        self._listener: asyncio.Server
        self._work: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"{'rediss' if self._tls else 'redis'}://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self.accept, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A client has connected."""
        raise NotImplementedError

    def begin(self, work: Coroutine[None, None, None]) -> None:
        """Do this until it ends, or the block does."""
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)


class Proxy(Between):
    """`async with Proxy(server_port) as proxy`: passes on what comes, but for what is set or asked for."""

    def __init__(self, server_port: int, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(server_port, tls=tls)
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._to_truncate: set[asyncio.StreamWriter] = set()
        self._replies_pass = asyncio.Event()
        self._replies_pass.set()
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

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        await super().__aexit__(kind, error, trace)

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

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.server_port)
        except OSError:  # nothing listens there at the moment
            writer.transport.abort()
            return
        self._pairs.append((writer, server_writer))
        self.begin(self._requests(reader, server_writer))
        self.begin(self._replies(server_reader, writer))

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
        """Pass the piece on. Returns whether the connection is still open."""
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
