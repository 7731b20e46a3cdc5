"""Servers for the real openai client: `llmock` (the plugin's fixture), and one whose bytes the test writes."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from factorial.models import Model, ModelRequest, Provider, close_clients


@pytest.fixture(autouse=True)
async def closed_clients() -> AsyncIterator[None]:
    """Close the connections after each test."""
    yield
    await close_clients()


@dataclass
class RawServer:
    """Answers every request with the next of `answers`, then with the last one again."""

    port: int = 0
    answers: list[bytes] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    connections: list[asyncio.Task[Any]] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["RawServer"]:
        """Serve on a free port. At the end, wait until the clients' connections are closed."""
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            await close_clients()
            await asyncio.gather(*self.connections)
            server.close()
            await server.wait_closed()

    @property
    def model(self) -> Model:
        """A model on this server, without a key."""
        return Model("raw", Provider("local", f"http://127.0.0.1:{self.port}/v1", api_key_env=None))

    def answer(
        self, body: bytes | dict[str, Any], *, content_type: str = "application/json", status: int = 200
    ) -> None:
        """Add a whole answer."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(payload)}\r\n\r\n"
        self.answers.append(head.encode() + payload)

    def stream(self, *pieces: dict[str, Any] | str) -> None:
        """Add a stream of server-sent events."""
        events = [f"data: {piece if isinstance(piece, str) else json.dumps(piece)}\n\n" for piece in pieces]
        self.answer("".join(events).encode(), content_type="text/event-stream")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(cast(asyncio.Task[Any], asyncio.current_task()))
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    int(line.split(":")[1]) for line in head.lower().split("\r\n") if "content-length" in line
                )
                self.headers.append(head)
                self.requests.append(json.loads(await reader.readexactly(length)))
                writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
        except asyncio.IncompleteReadError:
            writer.close()
            await writer.wait_closed()


@pytest.fixture
async def raw_server() -> AsyncIterator[RawServer]:
    """A real HTTP server on a socket, whose answers the test writes byte by byte."""
    async with RawServer().running() as raw:
        yield raw


@pytest.fixture
def request_() -> ModelRequest:
    """A request without tools and settings."""
    return ModelRequest([{"role": "user", "content": "What is the weather in Paris?"}], timeout=10.0)
