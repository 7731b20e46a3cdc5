"""A real HTTP server that speaks the chat-completions protocol and answers when the test says so.

    call = await provider.called()           a request is there, and waits for its answer
    call.answer(say("Sunny."))               or call.refuse(503), or provider.replies = [...] to answer by itself
    await call.abandoned()                   the client has hung up

`llmock` answers at once; this one is for tests of what happens while a model call is under way. It lives in the test's
own event loop. Like the providers, it refuses a conversation in which a tool call is not answered exactly once, in
order: see `flaw`. Fake: the language model behind it.
"""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from factorial.models import close_clients
from factorial.testing import Reply, say

__all__ = ["Call", "Provider", "flaw", "texts"]

Replies = Sequence[Reply | str] | Callable[[list[dict[str, Any]]], Reply | str | None]


class Call:
    """One request (`head`, `body`; `at`: when it came), and the way to answer it."""

    def __init__(self, number: int, head: str, body: dict[str, Any]) -> None:
        self.number = number
        self.head = head
        self.body = body
        self.at = time.monotonic()
        self.has_gone = asyncio.Event()
        self._response: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation that was sent."""
        messages: list[dict[str, Any]] = self.body["messages"]
        return messages

    def answer(self, reply: Reply | str) -> None:
        """Say this."""
        reply = say(reply) if isinstance(reply, str) else reply
        tool_calls = [
            {
                "index": index, "id": f"call_{self.number}_{index}", "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
            for index, (name, arguments) in enumerate(reply.tool_calls)
        ]  # fmt: skip
        message = {"role": "assistant", "content": reply.text} | ({"tool_calls": tool_calls} if tool_calls else {})
        finish = "tool_calls" if tool_calls else "stop"
        about = {"id": f"chatcmpl-{self.number}", "created": 0, "model": self.body["model"]}
        if self.body.get("stream"):
            choice = {"index": 0, "delta": message, "finish_reason": finish}
            self._stream(about | {"object": "chat.completion.chunk", "choices": [choice]})
        else:
            choice = {"index": 0, "message": message, "finish_reason": finish}
            self._respond(200, about | {"object": "chat.completion", "choices": [choice]})

    def refuse(self, status: int, message: str = "no", **headers: str) -> None:
        """Answer with an HTTP error. `retry_after="2"` becomes the header of that name."""
        self._respond(status, {"error": {"message": message}}, headers)

    def garble(self) -> None:
        """Answer with something that is not a completion. The next try of the task may succeed."""
        self._respond(200, {"object": "riddle"})

    async def abandoned(self, timeout: float = 20.0) -> None:
        """Wait until the client has hung up."""
        await asyncio.wait_for(self.has_gone.wait(), timeout)

    def _stream(self, chunk: dict[str, Any]) -> None:
        self._send(200, f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n", {"Content-Type": "text/event-stream"})

    def _respond(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(body), {"Content-Type": "application/json"} | (headers or {}))

    def _send(self, status: int, body: str, headers: dict[str, str]) -> None:
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        head = [f"HTTP/1.1 {status} X", *lines, f"Content-Length: {len(body.encode())}", "", ""]
        self._response.set_result("\r\n".join(head).encode() + body.encode())


class Provider:
    """The server. `calls` are all requests that came, in their order."""

    def __init__(self) -> None:
        self.port = 0
        self.replies: Replies | None = None
        """What it answers by itself: the n-th of a list to a conversation with n answers in it, or what a function of
        the messages gives; None leaves the request to the test."""
        self.calls: list[Call] = []
        self.flaws: list[str] = []
        """What was wrong with the conversations that it has refused."""
        self.at_once = 0
        self.most_at_once = 0
        """How many requests waited for their answer at the same time, at the most."""
        self._unseen: asyncio.Queue[Call] = asyncio.Queue()
        self._connections: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}
        self._numbers = itertools.count()

    @property
    def url(self) -> str:
        """What `OPENAI_BASE_URL` has to be."""
        return f"http://127.0.0.1:{self.port}/v1"

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator["Provider"]:
        """Serve on this port, or a free one."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            await close_clients()
            server.close()
            for writer in self._connections.values():
                writer.transport.abort()
            await asyncio.gather(*self._connections)
            await server.wait_closed()

    async def called(self, timeout: float = 20.0) -> Call:
        """The next request that the test has to answer."""
        return await asyncio.wait_for(self._unseen.get(), timeout)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections[connection] = writer
        try:
            while (request := await _request(reader)) is not None:
                call = Call(next(self._numbers), *request)
                self.calls.append(call)
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                try:
                    if not await self._answer(call, reader, writer):
                        break
                finally:
                    self.at_once -= 1
        finally:
            del self._connections[connection]
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the client is still there."""
        if (wrong := flaw(call.messages)) is not None:
            self.flaws.append(wrong)
            call.refuse(400, wrong)
        elif (reply := self._reply(call)) is not None:
            call.answer(reply)
        else:
            self._unseen.put_nowait(call)
        # A client that waits for its answer sends nothing: what can be read is the end.
        end = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({end, call._response}, return_when=asyncio.FIRST_COMPLETED)
            if not call._response.done():
                call.has_gone.set()
                return False
        finally:
            end.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await end
        return await self._send_response(call, writer)

    async def _send_response(self, call: Call, writer: asyncio.StreamWriter) -> bool:
        writer.write(call._response.result())
        await writer.drain()
        return True

    def _reply(self, call: Call) -> Reply | str | None:
        if self.replies is None:
            return None
        if callable(self.replies):
            return self.replies(call.messages)
        said = sum(message["role"] == "assistant" for message in call.messages)
        return self.replies[said] if said < len(self.replies) else None


async def _request(reader: asyncio.StreamReader) -> tuple[str, dict[str, Any]] | None:
    """The head in lower case, and the body."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length"))
        return head, json.loads(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def flaw(messages: Sequence[dict[str, Any]]) -> str | None:
    """Why no provider takes this conversation; None if it is valid: each message with tool calls is followed at once by
    one answer to each of them, in their order, and there is no other answer."""
    open_calls: list[str] = []
    for position, message in enumerate(messages):
        if message["role"] == "tool":
            if not open_calls or message["tool_call_id"] != open_calls.pop(0):
                return f"messages[{position}] answers {message['tool_call_id']!r}, which is not the next open tool call"
        elif open_calls:
            return f"messages[{position}] comes before the answers to {open_calls}"
        open_calls += [call["id"] for call in message.get("tool_calls") or ()]
    return f"nothing answers {open_calls}" if open_calls else None


def texts(messages: Sequence[dict[str, Any]]) -> list[str]:
    """Role and content of each message, or the names of the tools it calls: for comparison at a glance."""
    return [
        f"{message['role']}: "
        + (", ".join(f"{one['function']['name']}()" for one in message.get("tool_calls") or ()) or message["content"])
        for message in messages
    ]
