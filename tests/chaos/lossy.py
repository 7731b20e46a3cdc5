"""A proxy between clients and a server that loses answers: the server has carried the command out, and its client sees
nothing but a connection that breaks.

    async with LossyProxy(server_port, lose) as proxy: ...      lose(command) says whether this answer is to be lost
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis

from tests.proxy import Between

__all__ = ["Command", "LossyProxy"]

Command = tuple[bytes, ...]


class LossyProxy(Between):
    """Relays between its `url` and the server, and notes what the server has answered to each command."""

    def __init__(self, server_port: int, lose: Callable[[Command], bool]) -> None:
        super().__init__(server_port)
        self._lose = lose
        self.answers: dict[Command, list[Any]] = {}
        """Of all commands that were sent, in the order of their first try: what the server has answered to each try."""

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay, until either side hangs up or an answer is lost."""
        self.begin(self._relay(reader, writer))

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.server_port)
        under_way: deque[Command] = deque()
        ways = [
            asyncio.create_task(self._requests(reader, server_writer, under_way)),
            asyncio.create_task(self._replies(server_reader, writer, under_way)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, server_writer):
                end.transport.abort()

    async def _requests(
        self, client: asyncio.StreamReader, server: asyncio.StreamWriter, under_way: deque[Command]
    ) -> None:
        parser = hiredis.Reader(notEnoughData=Ellipsis)
        with contextlib.suppress(OSError):
            while data := await client.read(65536):
                parser.feed(data)
                while (command := parser.gets()) is not Ellipsis:
                    under_way.append(tuple(command))
                server.write(data)
                await server.drain()

    async def _replies(
        self, server: asyncio.StreamReader, client: asyncio.StreamWriter, under_way: deque[Command]
    ) -> None:
        """Pass on what comes, until an answer in it is to be lost: then the whole piece is."""
        parser = hiredis.Reader(notEnoughData=Ellipsis)
        with contextlib.suppress(OSError):
            while data := await server.read(65536):
                parser.feed(data)
                answered = []
                while (answer := parser.gets()) is not Ellipsis:
                    if under_way:  # else it is news from a channel
                        answered.append(under_way.popleft())
                        self.answers.setdefault(answered[-1], []).append(answer)
                if any([self._lose(command) for command in answered]):
                    return
                client.write(data)
                await client.drain()
