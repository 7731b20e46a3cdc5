"""Chapter E of PROMISES.md: events in web backends (E12), and by hand over Redis (E02).

Real: Valkey, the workers' actors, uvicorn, WebSockets, redis-py, HTTP to the model. Fake: the language model.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from llmock.pytest_plugin import LLMock
from pydantic import BaseModel
from redis.asyncio import Redis

from factorial import Agent, AgentContext, Orchestrator, gpt_41
from tests.harness import System
from tests.spec.web import hear, post, served, socket
from tests.support import wait_until

Updates = list[dict[str, Any]]


class EnqueueRequest(BaseModel):
    user_id: str
    query: str
    message_history: list[dict[str, Any]] = []


def get_weather(city: str) -> str:
    """Get weather for a city"""
    return f"The weather in {city} is sunny."


@pytest.fixture
def agent() -> Agent:
    return Agent(name="basic_agent", instructions="Help.", tools=[get_weather], model=gpt_41)


@pytest.fixture
def backend(system: System, agent: Agent, redis_url: str, node_url: str) -> Iterator[str]:
    """A backend with an orchestrator of its own, in the shape that the document shows, and with `after`."""
    orchestrator = Orchestrator(redis_url=redis_url, namespace=system.redis.namespace)
    app = FastAPI()

    async def forward(websocket: WebSocket, **filters: Any) -> None:
        await websocket.accept()
        try:
            async for update in orchestrator.subscribe_to_updates(**filters):
                await websocket.send_text(json.dumps(update))
        except WebSocketDisconnect:
            pass

    @app.post("/api/enqueue")
    async def enqueue(request: EnqueueRequest) -> dict[str, str]:
        payload = AgentContext(messages=request.message_history, query=request.query)
        task = agent.create_task(owner_id=request.user_id, payload=payload)
        await orchestrator.enqueue_task(agent=agent, task=task)
        return {"task_id": task.id}

    @app.websocket("/ws/{user_id}")
    async def updates(websocket: WebSocket, user_id: str, after: str | None = None) -> None:
        await forward(websocket, owner_id=user_id, after=after)

    @app.websocket("/ws/{user_id}/final")
    async def final(websocket: WebSocket, user_id: str) -> None:
        await forward(websocket, owner_id=user_id, event_types=["run_completed", "run_failed", "run_cancelled"])

    @app.websocket("/ws/{user_id}/tasks/{task_ids}")
    async def of_tasks(websocket: WebSocket, user_id: str, task_ids: str) -> None:
        await forward(websocket, owner_id=user_id, task_ids=task_ids.split(","))

    @app.websocket("/ws/{user_id}/progress")
    async def progress(websocket: WebSocket, user_id: str) -> None:
        await forward(websocket, owner_id=user_id, event_pattern=r"progress_update_.*")

    @app.websocket("/manual/{user_id}")
    async def manual(websocket: WebSocket, user_id: str) -> None:
        await websocket.accept()
        client = Redis.from_url(node_url)
        pubsub = client.pubsub()
        await pubsub.subscribe(orchestrator.get_updates_channel(owner_id=user_id))
        await websocket.send_text("{}")  # subscribed: from now on nothing is missed
        try:
            while True:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=0.1)
                if message and message["type"] == "message":
                    await websocket.send_text(message["data"].decode())
        except WebSocketDisconnect:
            pass
        finally:
            await pubsub.aclose()  # type: ignore[no-untyped-call]
            await client.aclose()

    with served(app) as address:
        yield address


async def ask(backend: str, query: str = "How is the weather in Oslo?", **more: Any) -> str:
    task_id: str = (await post(backend, "/api/enqueue", {"user_id": "user", "query": query, **more}))["task_id"]
    return task_id


def with_a_tool(llmock: LLMock) -> None:
    llmock.call_tool("get_weather", {"city": "Oslo"}).reply("Sunny in Oslo.")


def of(event_type: str) -> Callable[[Updates], bool]:
    return lambda heard: event_type in types(heard)


def types(updates: Updates) -> list[str]:
    return [one["event_type"] for one in updates if one]


async def test_spec_E12_one_client_from_the_start_and_one_that_comes_late(
    system: System, agent: Agent, backend: str, llmock: LLMock
) -> None:
    with_a_tool(llmock)
    await system.start(agent)
    async with socket(backend, "/ws/user") as early:
        task_id = await ask(backend)
        heard = await hear(early, of("run_completed"))
    assert types(heard)[:2] == ["run_enqueued", "run_started"]
    assert [one["data"] for one in heard if one["event_type"] == "agent_output"] == ["Sunny in Oslo."]
    assert heard == await system.events(task_id, "user")
    await system.reaches(task_id, "completed")
    async with socket(backend, "/ws/user") as late:  # the run has ended
        assert await hear(late, of("run_completed")) == heard


async def test_spec_E12_a_client_that_is_cut_off_goes_on_behind_the_last_event_that_it_saw(
    system: System, agent: Agent, backend: str, llmock: LLMock
) -> None:
    with_a_tool(llmock)
    async with socket(backend, "/ws/user") as watching:
        task_id = await ask(backend)
        seen = await hear(watching, of("run_enqueued"))
        watching.transport.abort()  # the line is cut: nothing is said to the server
    await system.start(agent)
    async with socket(backend, f"/ws/user?after={seen[-1]['id']}") as again:
        seen += await hear(again, of("progress_update_tool_action_started"))
        again.transport.abort()
    await system.reaches(task_id, "completed")
    async with socket(backend, f"/ws/user?after={seen[-1]['id']}") as again:
        seen += await hear(again, of("run_completed"))
    assert seen == await system.events(task_id, "user")


async def test_spec_E12_the_filtered_sockets(system: System, agent: Agent, backend: str, llmock: LLMock) -> None:
    llmock.reply("One.", times=2)
    await system.start(agent)
    async with (
        socket(backend, "/ws/user/final") as final,
        socket(backend, "/ws/user/progress") as progress,
    ):
        first, second = await ask(backend), await ask(backend)
        endings = await hear(final, lambda heard: len(heard) == 2)
        assert {(one["event_type"], one["task_id"]) for one in endings} == {
            ("run_completed", first), ("run_completed", second),
        }  # fmt: skip
        steps = await hear(progress, lambda heard: types(heard).count("progress_update_run_turn_completed") == 2)
        assert all(name.startswith("progress_update_") for name in types(steps))
    async with socket(backend, f"/ws/user/tasks/{second}") as one_task:
        assert await hear(one_task, of("run_completed")) == await system.events(second, "user")
    async with socket(backend, f"/ws/user/tasks/{first},{second}") as both:
        heard = await hear(both, lambda heard: types(heard).count("run_completed") == 2)
    assert heard == await system.events(owner_id="user")


async def test_spec_E02_E12_the_manual_way_hears_the_same_text(
    system: System, agent: Agent, backend: str, llmock: LLMock
) -> None:
    with_a_tool(llmock)
    await system.start(agent)
    async with socket(backend, "/manual/user") as manual:
        assert json.loads(await manual.recv()) == {}
        task_id = await ask(backend, message_history=[{"role": "user", "content": "Hello"}])
        assert await hear(manual, of("run_completed")) == await system.events(task_id, "user")
    assert llmock.requests[0].body["messages"][1]["content"] == "Hello"


async def test_spec_E12_a_client_that_left_leaves_nothing_behind(
    system: System, agent: Agent, backend: str, llmock: LLMock
) -> None:
    """Its subscription ends with the first update that cannot be sent any more."""
    llmock.reply("Hi.", times=2)
    channel = system.orchestrator.get_updates_channel("user")

    async def listeners() -> int:
        count: int = (await system.execute("PUBSUB", "NUMSUB", channel))[1]
        return count

    async with socket(backend, "/ws/user"):
        await wait_until(listeners)
    await system.start(agent)
    await ask(backend)

    async def no_subscriber() -> bool:
        return not await listeners()

    await wait_until(no_subscriber, 20, "the end of all subscriptions")
