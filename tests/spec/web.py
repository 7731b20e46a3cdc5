"""A web application on a real port, in a thread of its own, and WebSocket clients that talk to it. Nothing is fake."""

import asyncio
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from websockets.asyncio.client import ClientConnection, connect

__all__ = ["hear", "post", "served", "socket"]

Updates = list[dict[str, Any]]


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve `app` with uvicorn; gives its host and port. In the end the server stops as on SIGTERM."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "uvicorn did not start"
            time.sleep(0.01)
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "uvicorn did not stop"


async def post(address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """What the server answers, as JSON."""
    request = urllib.request.Request(
        f"http://{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )

    def send() -> bytes:
        with urllib.request.urlopen(request, timeout=20) as response:
            answer: bytes = response.read()
            return answer

    answer: dict[str, Any] = json.loads(await asyncio.to_thread(send))
    return answer


def socket(address: str, path: str) -> connect:
    """A WebSocket client: `async with socket(address, "/ws/user") as client`."""
    return connect(f"ws://{address}{path}", proxy=None)


async def hear(client: ClientConnection, until: Callable[[Updates], bool], timeout: float = 20.0) -> Updates:
    """What comes, until it is enough."""
    heard: Updates = []
    async with asyncio.timeout(timeout):
        while not until(heard):
            heard.append(json.loads(await client.recv()))
    return heard
