"""The conversation of durable runs: what is kept of odd answers, through Redis, retries and crashes; and what is left
when a run ends in the middle of a turn.

Real: actors, mailbox, Valkey, HTTP, the openai client. Fake: the lifeline, and the language model: the server's answers
are written here, and it rejects what real providers reject.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from factorial import Agent, AgentContext, ExecutionContext, Model, Provider, RetryableError, deferred_result
from factorial.models import close_clients
from factorial.testing import ScriptedModel, call, calls, say
from tests.harness import System, quick
from tests.provider_rules import breaches
from tests.support import wait_until

ECHO = ("reasoning_content",)


class Server:
    """Answers the request number n with `answer(n, body)`: a message. Rejects what no provider would accept."""

    def __init__(
        self, answer: Callable[[int, dict[str, Any]], dict[str, Any]], name: str = "local", *, thinks: bool = True
    ) -> None:
        self._answer = answer
        self._name = name
        self._thinks = thinks
        self.requests: list[dict[str, Any]] = []
        self.rejected: list[Any] = []
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Server"]:
        connections: set[asyncio.StreamWriter] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.add(writer)
            try:
                while head := (await reader.readuntil(b"\r\n\r\n")).decode().lower():
                    length = next(int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length"))
                    status, answer = self._respond(json.loads(await reader.readexactly(length)))
                    body = json.dumps(answer).encode()
                    top = (
                        f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                    )
                    writer.write(top.encode() + body)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            await close_clients()
            server.close()
            for writer in connections:
                writer.transport.abort()
            await server.wait_closed()

    def _respond(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.requests.append(body)
        own = {one["id"] for message in body["messages"] for one in message.get("tool_calls") or ()}
        wrong = breaches(body["messages"], own=own if self._thinks else (), echo=ECHO if self._thinks else ())
        made = [message for message in body["messages"] if message.get("tool_calls")]
        if self._thinks and any("reasoning_content" not in message for message in made if _is_own(message)):
            wrong.append("the reasoning_content must be passed back")
        if wrong:
            self.rejected.append(wrong)
            return 400, {"error": {"message": str(wrong)}}
        message = self._answer(len(self.requests) - 1, body)
        choice = {"index": 0, "finish_reason": message.pop("finish", "stop"), "message": message}
        return 200, {"id": "c", "created": 1, "model": "m", "choices": [choice]}

    @property
    def model(self) -> Model:
        """A model on this server."""
        return Model(self._name, Provider(self._name, f"http://127.0.0.1:{self.port}/v1", None))


def _is_own(message: dict[str, Any]) -> bool:
    """Whether a message is of the thinking model: it names its calls in its own way."""
    return not any(one["id"].startswith("other_") for one in message["tool_calls"])


def asking(*tool_calls: dict[str, Any]) -> dict[str, Any]:
    return {"content": None, "reasoning_content": "hm", "tool_calls": list(tool_calls)}


def results(body: dict[str, Any]) -> list[str]:
    return [message["content"] for message in body["messages"] if message["role"] == "tool"]


async def test_odd_calls_survive_retries_and_a_crash(system: System) -> None:
    """The recorded answer is recalled with its reasoning, and with the ids that its calls were given."""
    ids: list[str] = []
    gate = asyncio.Event()

    async def look(city: str, execution_ctx: ExecutionContext) -> str:
        """Look."""
        ids.append(execution_ctx.tool_call_id)
        if len(ids) <= 2:
            raise RetryableError("once more")
        await gate.wait()
        return f"4 degrees in {city}"

    odd = {"type": "", "function": {"name": "look", "arguments": {"city": "Oslo"}}}
    server = Server(lambda n, body: asking(dict(odd), dict(odd)) if n == 0 else {"content": "done"})
    async with server.running():
        agent = Agent(name="a", tools=[look], model=server.model)
        first = await system.start(agent, quick())
        task_id = await system.submit(agent)
        await wait_until(lambda: len(ids) == 4)
        await first.kill()
        await (await system.mailbox()).reclaim_process(first.name)
        gate.set()
        await system.start(agent, quick())
        data = await system.ended(task_id)
    assert (data["payload"]["output"], server.rejected, len(server.requests)) == ("done", [], 2)
    assert len(set(ids)) == 2, "a call keeps its id"
    called = data["payload"]["messages"][1]
    assert {one["id"] for one in called["tool_calls"]} == set(ids)
    assert called["provider_data"] == {
        "provider": "local",
        "api": "chat",
        "message": {"reasoning_content": "hm", "tool_calls": [odd, odd]},
    }
    assert results(server.requests[-1]) == ["4 degrees in Oslo"] * 2
    assert data["finish_reason"] == "stop"


@pytest.mark.parametrize("call_id", ["ask", "", None])
async def test_one_result_answers_one_call(system: System, call_id: str | None) -> None:
    """The provider gives all calls one id, or none; also those of a later turn."""

    @deferred_result(timeout=60)
    def approve(payment: int) -> None:
        """Ask somebody."""

    def asked(payment: int) -> dict[str, Any]:
        about = {"type": "function", "function": {"name": "approve", "arguments": f'{{"payment": {payment}}}'}}
        return about if call_id is None else {**about, "id": call_id}

    server = Server(lambda n, body: [asking(asked(0), asked(1)), asking(asked(2)), {"content": str(results(body))}][n])
    async with server.running():
        agent = Agent(name="a", tools=[approve], model=server.model)
        await system.start(agent, quick())
        task_id = await system.submit(agent)
        first, second = await _pending(system, task_id, 2)
        assert first != second
        assert await system.orchestrator.complete_deferred_tool(task_id, first, "approved 0")
        assert await system.orchestrator.complete_deferred_tool(task_id, second, "approved 1")
        await wait_until(lambda: len(server.requests) == 2)
        [third] = await _pending(system, task_id, 1)
        assert third not in (first, second)
        assert not await system.orchestrator.complete_deferred_tool(task_id, first, "approved 0"), "delivered twice"
        assert await system.orchestrator.complete_deferred_tool(task_id, third, "approved 2")
        data = await system.ended(task_id)
    assert data["payload"]["output"] == str(["approved 0", "approved 1", "approved 2"])
    assert not server.rejected


async def test_a_run_that_changes_its_provider_and_comes_back(system: System) -> None:
    """Each gets its own reasoning and ids, and nothing of the other's."""

    def look(n: int) -> str:
        """Look."""
        return f"seen {n}"

    def asked(call_id: str, n: int) -> dict[str, Any]:
        return {"id": call_id, "type": "function", "function": {"name": "look", "arguments": f'{{"n": {n}}}'}}

    thinking = Server(
        lambda n, body: [
            asking(asked("functions.look:0", 0)),
            asking(asked("functions.look:1", 2)),
            {"content": "done"},
        ][n],
        "thinking",
    )
    other = Server(lambda n, body: {"content": None, "tool_calls": [asked("other_1", 1)]}, "other", thinks=False)
    async with thinking.running(), other.running():
        first, second = thinking.model, other.model
        agent = Agent(name="a", tools=[look], model=lambda ctx: second if ctx.turn == 1 else first)
        await system.start(agent, quick())
        data = await system.ended(await system.submit(agent))
    assert (data["status"], thinking.rejected, other.rejected) == ("completed", [], [])
    assert results(thinking.requests[-1]) == ["seen 0", "seen 1", "seen 2"]
    ids = [call["id"] for message in other.requests[0]["messages"] for call in message.get("tool_calls") or ()]
    assert ids and "functions.look:0" not in ids
    stored = [call["id"] for message in data["payload"]["messages"] for call in message.get("tool_calls") or ()]
    assert stored == ["functions.look:0", "other_1", "functions.look:1"]


async def _pending(system: System, task_id: str, count: int) -> list[str]:
    """The ids of the calls that the parked task awaits, in the model's order."""

    async def parked() -> list[str] | None:
        events = [event for event in await system.events(task_id) if event["event_type"].startswith("task_pending")]
        ids: list[str] = events[-1]["data"]["tool_call_ids"] if events else []
        return ids if len(ids) == count else None

    found: list[str] = await wait_until(parked)
    return found


@deferred_result(timeout=60)
def ask() -> None:
    """Ask somebody outside."""


async def test_a_run_that_is_cancelled_while_it_is_parked_leaves_no_call_open(system: System) -> None:
    """Its conversation is the beginning of the next question's."""
    script = ScriptedModel([calls(call("look"), call("ask")), say("done")])

    def look() -> str:
        """Look."""
        return "seen"

    agent = Agent(name="parent", tools=[ask, look], model=script)
    await system.start(agent, quick())
    task_id = await system.submit(agent)

    live = (await system.reaches(task_id, "pending_tool_results"))["payload"]["messages"]
    assert breaches(live), "the result may still come"
    await system.orchestrator.cancel_task(task_id)
    messages = (await system.ended(task_id))["payload"]["messages"]
    assert breaches([*messages, {"role": "user", "content": "next"}]) == []
    for conversation in (messages, live):
        following = Agent(
            name="next", model=ScriptedModel(lambda messages: say(str(breaches([dict(one) for one in messages]))))
        )
        await system.start(following, quick())
        again = await system.submit(following, AgentContext(query="go on", messages=conversation))
        assert (await system.ended(again))["payload"]["output"] == "[]"


async def test_why_the_answer_ended_is_stored_and_published(system: System) -> None:
    server = Server(lambda n, body: {"content": "The dose is", "finish": "length"})
    async with server.running():
        marks = Agent(name="marks", model=server.model, incomplete_answers="mark")
        fails = Agent(name="fails", model=server.model)
        for agent in (marks, fails):
            await system.start(agent, quick())
        marked, failed = await system.submit(marks), await system.submit(fails)
        data = await system.ended(marked)
        assert (data["status"], data["payload"]["output"], data["finish_reason"]) == (
            "completed",
            "The dose is",
            "length",
        )
        assert (await system.event(marked, "run_completed"))["metadata"]["finish_reason"] == "length"
        assert (await system.event(marked, "agent_output"))["metadata"]["finish_reason"] == "length"
        data = await system.ended(failed)
        assert data["status"] == "failed" and "cut at the token limit, after 11 characters" in data["error"]
    assert len(server.requests) == 2, "it is not tried again"
