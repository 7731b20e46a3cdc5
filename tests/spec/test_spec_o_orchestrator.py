"""The orchestrator as a client's door: where Redis is, tasks in, their status, their data (O01, O06 to O08).

Real: Valkey, HTTP, the openai client, the actors. Fake: the language model, and the lifeline of a worker process.
"""

import json
from collections.abc import Awaitable, Callable

import pytest
from llmock.pytest_plugin import LLMock

from factorial import Agent, AgentContext, Orchestrator, TaskStatus, gpt_41
from factorial.errors import InvalidTaskIdError, TaskNotFoundError
from factorial.testing import call
from tests.harness import System, quick
from tests.spec.provider import Provider
from tests.spec.situations import SITUATIONS, Situation, Stage, ended_as
from tests.valkey import ValkeyServer


async def test_spec_O01_the_parameters_say_where_redis_is_and_hold_the_key(
    own_valkey: ValkeyServer, provider: Provider, namespace: str
) -> None:
    """A server on TCP, its third database, and a key that the provider gets and Redis never sees."""
    own_valkey.start()
    host, port = own_valkey.url.removeprefix("redis://").split("/")[0].split(":")
    secret = "sk-of-the-orchestrator-0123456789"
    orchestrator = Orchestrator(
        redis_host=host, redis_port=int(port), redis_db=2, redis_max_connections=50, openai_api_key=secret,
        namespace=namespace,
    )  # fmt: skip
    system = System(f"redis://{host}:{port}/2", namespace)
    agent = Agent(name="worker", model=gpt_41)
    try:
        await system.start(agent)
        task = await orchestrator.enqueue_task(agent=agent, owner_id="owner", payload=AgentContext(query="hello"))
        request = await provider.called()
        assert f"authorization: bearer {secret}" in request.head
        request.answer("done")
        assert (await system.ended(task.id))["payload"]["output"] == "done"
        assert await orchestrator.get_task_status(task.id) == "completed"
        used = (await system.execute("INFO", "keyspace")).decode()
        assert "db2:" in used and "db0:" not in used
        await system.execute("CONFIG", "SET", "rdbcompression", "no")  # so that a dump can be read
        dumps = [await system.execute("DUMP", key) for key in await system.execute("KEYS", "*")]
        assert any(b"hello" in dump for dump in dumps)
        assert not any(secret.encode() in dump for dump in dumps)
    finally:
        await orchestrator.close()
        await system.close()


async def test_spec_O06_enqueue_gives_a_task_with_an_id(system: System, llmock: LLMock) -> None:
    """Both forms, and the ids are those under which the tasks are known."""
    agent = Agent(name="worker", model=gpt_41)
    await system.start(agent)
    first = await system.orchestrator.enqueue_task(
        agent=agent, owner_id="user123", payload=AgentContext(query="Analyze this data")
    )
    made = agent.create_task(owner_id="user123", payload=AgentContext(query="Analyze this data, too"))
    second = await system.orchestrator.enqueue_task(agent=agent, task=made)
    assert second is made
    assert first.id and second.id and first.id != second.id
    for task in (first, second):
        data = await system.ended(task.id)
        assert (data["id"], data["owner_id"], data["status"]) == (task.id, "user123", "completed")
    asked = {request.body["messages"][-1]["content"] for request in llmock.requests}
    assert asked == {"Analyze this data", "Analyze this data, too"}


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda each: str(each.__name__))
async def test_spec_O07_the_status_says_where_the_task_stands(
    system: System, provider: Provider, situation: Callable[[Stage], Awaitable[Situation]]
) -> None:
    """Queued, processing, backing off, or waiting for tools or children: equal to, and printed as, the plain word."""
    run = await situation(Stage(system, provider))
    status = await system.orchestrator.get_task_status(run.task_id)
    assert isinstance(status, TaskStatus)
    assert status == run.status
    assert (str(status), f"{status}", f"Status: {status}") == (run.status, run.status, f"Status: {run.status}")
    assert json.dumps({"status": status}) == f'{{"status": "{run.status}"}}'
    assert not status.is_final
    assert (await system.data(run.task_id))["status"] == run.status
    assert ((await system.data(run.task_id))["process"] is not None) == (run.status == "processing")
    await system.orchestrator.cancel_task(run.task_id)


def test_spec_O07_the_words() -> None:
    words = {"queued", "processing", "completed", "failed", "cancelled", "backoff"}
    of_older_programs = {"active", "paused"}
    assert set(TaskStatus) == words | {"pending_tool_results", "pending_child_tasks"} | of_older_programs
    assert str(TaskStatus.PENDING_TOOL_RESULTS) == "pending_tool_results"
    assert str(TaskStatus.PENDING_CHILD_TASKS) == "pending_child_tasks"


@pytest.mark.parametrize("ending", ["completed", "failed", "cancelled"])
async def test_spec_O07_the_status_says_how_the_task_ended(system: System, provider: Provider, ending: str) -> None:
    task_id = await ended_as(system, provider, ending)
    status = await system.orchestrator.get_task_status(task_id)
    assert status == ending and f"{status}" == ending and status.is_final


async def test_spec_O07_O08_a_task_that_is_not_there(system: System) -> None:
    with pytest.raises(TaskNotFoundError, match="there is no task 'unknown'"):
        await system.orchestrator.get_task_status("unknown")
    assert await system.orchestrator.get_task_data("unknown") is None
    for ask in (system.orchestrator.get_task_status, system.orchestrator.get_task_data):
        with pytest.raises(InvalidTaskIdError):
            await ask("no id, surely")


async def test_spec_O08_the_data_of_a_task_from_its_beginning_to_its_end(system: System, provider: Provider) -> None:
    """As the document reads it: `task_data["payload"].get("output")`."""

    async def look() -> str:
        """Look."""
        return "seen"

    agent = Agent(name="worker", model=gpt_41, tools=[look])
    task_id = await system.submit(agent, AgentContext(query="hello", note="kept"))  # type: ignore[call-arg]
    data = await system.orchestrator.get_task_data(task_id)
    assert data is not None and data["payload"].get("output") is None
    assert data["payload"]["query"] == "hello" and data["payload"]["note"] == "kept"
    process = await system.start(agent, quick())
    (await provider.called()).answer(call("look"))
    request = await provider.called()
    data = await system.orchestrator.get_task_data(task_id)
    assert data is not None
    assert (data["status"], data["process"], data["agent"]) == ("processing", process.name, "worker")
    assert [message["role"] for message in data["payload"]["messages"]] == ["user", "assistant", "tool"]
    assert data["payload"]["turn"] == 1
    request.answer("done")
    data = await system.ended(task_id)
    assert data["payload"].get("output") == "done"
    assert (data["payload"]["turn"], data["payload"]["note"]) == (2, "kept")
    assert data["created_at"] <= data["ended_at"]
    json.dumps(data)  # plain data
