"""The orchestrator's own promises: both forms of enqueue, what can be read of a task, event loops that come and go.

Real: actors, mailbox, Valkey. Fake: the lifeline, and the model, which is scripted.
"""

import asyncio
import gc
import threading
import warnings
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from factorial import Agent, AgentContext, BaseAgent, Orchestrator
from factorial.errors import (
    ConfigError,
    ContextError,
    CorruptedTaskDataError,
    InvalidTaskIdError,
    MailboxError,
    MailboxUnavailableError,
    TaskNotFoundError,
)
from factorial.task import Task, TaskStatus
from factorial.testing import ScriptedModel, call, say
from tests.harness import System
from tests.valkey import free_port

PLAIN = Agent(name="plain", model=ScriptedModel(["done"]))


# -- enqueue


async def test_both_forms_of_enqueue(system: System) -> None:
    await system.start(PLAIN)
    task = PLAIN.create_task(owner_id="owner", payload=AgentContext(query="q"))
    first = await system.orchestrator.enqueue_task(agent=PLAIN, task=task)
    second = await system.orchestrator.enqueue_task(PLAIN, owner_id="owner", payload=AgentContext(query="q"))
    assert first.id == task.id and second.id != task.id
    for enqueued in (first, second):
        assert (await system.ended(enqueued.id))["payload"]["output"] == "done"


async def test_a_task_that_was_enqueued_before_is_left_as_it_is(system: System) -> None:
    await system.start(PLAIN)
    task = PLAIN.create_task(owner_id="owner", payload=AgentContext(query="q"))
    for _ in range(3):
        await system.orchestrator.enqueue_task(PLAIN, task)
    await system.ended(task.id)
    await system.orchestrator.enqueue_task(PLAIN, task)
    types = await system.types(task.id)
    assert types == ["run_enqueued", "run_started", "agent_output", "run_completed"]


async def test_a_known_id_is_answered_with_the_stored_task(system: System, caplog: pytest.LogCaptureFixture) -> None:
    other = Agent(name="other", model=ScriptedModel([say("done")]))

    def named(agent: Agent, owner_id: str, query: str) -> Task[AgentContext]:
        return replace(agent.create_task(owner_id, AgentContext(query=query)), id="order-1")

    first = await system.orchestrator.enqueue_task(PLAIN, named(PLAIN, "ann", "q"))
    assert (first.status, first.payload.query) == ("queued", "q")
    await system.orchestrator.enqueue_task(PLAIN, named(PLAIN, "ann", "q"))
    assert "order-1" not in caplog.text
    again = await system.orchestrator.enqueue_task(other, named(other, "bob", "p"))
    assert (again.id, again.agent, again.owner_id, again.status) == ("order-1", PLAIN.name, "ann", "queued")
    [told] = [message for message in caplog.messages if "order-1" in message]
    assert "it is stored already (queued), with another agent and another owner_id and another payload" in told
    await system.start(PLAIN)
    await system.reaches("order-1", "completed")
    ended = await system.orchestrator.enqueue_task(PLAIN, named(PLAIN, "ann", "q"))
    assert (ended.status, ended.payload.output, ended.pickups) == ("completed", "done", 1)


async def test_what_cannot_be_enqueued_is_refused_and_nothing_is_stored(system: System) -> None:
    class Special(AgentContext):
        pass

    special: BaseAgent[Special] = BaseAgent(name="special", context_class=Special, model=ScriptedModel(["done"]))
    enqueue: Any = system.orchestrator.enqueue_task
    context = AgentContext(query="q")
    task = PLAIN.create_task("owner", context)
    with pytest.raises(ConfigError, match=r"give task=\.\.\., or owner_id"):
        await enqueue(PLAIN)
    with pytest.raises(ConfigError, match="exclude each other"):
        await enqueue(PLAIN, task, owner_id="owner")
    with pytest.raises(ConfigError, match="the task is for agent 'plain'"):
        await enqueue(special, task)
    with pytest.raises(ContextError, match="agent 'special' works on Special"):
        await enqueue(special, owner_id="owner", payload="q")
    with pytest.raises(ConfigError, match="cannot name an owner"):
        await enqueue(PLAIN, owner_id="a\nb", payload=context)
    task.id = "no id at all"
    with pytest.raises(InvalidTaskIdError):
        await enqueue(PLAIN, task)
    keys = (await system.mailbox()).keys
    assert await system.execute("KEYS", keys.prefix + "*") == [keys.layout.encode()]


# -- status and data


async def test_the_status_prints_as_the_plain_word(system: System) -> None:
    task_id = await system.submit(PLAIN)
    status = await system.orchestrator.get_task_status(task_id)
    assert status == "queued" and f"{status}" == "queued" and str(status) == "queued" and status is TaskStatus.QUEUED
    assert not status.is_final and TaskStatus.CANCELLED.is_final


async def test_the_data_of_a_task(system: System) -> None:
    task_id = await system.submit(PLAIN, AgentContext(query="q", note="kept"))  # type: ignore[call-arg]
    data = await system.data(task_id)
    asked = [{"role": "user", "content": "q"}]
    assert data["payload"] == {"query": "q", "note": "kept", "turn": 0, "output": None, "messages": asked}
    assert (data["id"], data["owner_id"], data["agent"], data["process"]) == (task_id, "owner", "plain", None)
    assert (data["ended_at"], data["pickups"], data["error"]) == (None, 0, None)
    await system.start(PLAIN)
    data = await system.ended(task_id)
    assert data["payload"]["output"] == "done"
    assert [message["role"] for message in data["payload"]["messages"]] == ["user", "assistant"]
    assert datetime.fromisoformat(data["created_at"]) <= datetime.fromisoformat(data["ended_at"])


async def test_unknown_and_impossible_task_ids(system: System) -> None:
    orchestrator = system.orchestrator
    assert await orchestrator.get_task_data("unknown") is None
    with pytest.raises(TaskNotFoundError, match="'unknown'"):
        await orchestrator.get_task_status("unknown")
    for nonsense in ("", "a b", "x" * 129, None, 7, "{tag}"):
        with pytest.raises(InvalidTaskIdError, match="is not a task id"):
            await orchestrator.get_task_status(nonsense)  # type: ignore[arg-type]
        with pytest.raises(InvalidTaskIdError):
            await orchestrator.get_task_data(nonsense)  # type: ignore[arg-type]


async def test_data_that_cannot_be_read_is_told_of(system: System) -> None:
    task_id = await system.submit(PLAIN)
    await system.execute("HSET", f"{(await system.mailbox()).keys.prefix}fields:{task_id}", "query", "{broken")
    with pytest.raises(CorruptedTaskDataError, match=task_id):
        await system.orchestrator.get_task_data(task_id)
    assert await system.orchestrator.cancel_task(task_id) == "cancelled"


async def test_several_agents_have_queues_of_their_own(system: System) -> None:
    other = Agent(name="other", model=ScriptedModel(["from the other"]))
    await system.start(PLAIN)
    first, second = await system.submit(PLAIN), await system.submit(other)
    await system.ended(first)
    assert (await system.data(second))["status"] == "queued"
    await system.start(other)
    assert (await system.ended(second))["payload"]["output"] == "from the other"


# -- construction, registration


def test_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    orchestrator = Orchestrator(
        redis_host="h", redis_port=7, redis_db=3, redis_max_connections=5, openai_api_key="sk-secret"
    )
    assert orchestrator.redis.resolved_url == "redis://h:7/3"
    import os

    assert os.environ["OPENAI_API_KEY"] == "sk-secret"
    assert "sk-secret" not in repr(vars(orchestrator))
    monkeypatch.delenv("OPENAI_API_KEY")


def test_without_parameters_the_environment_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    assert Orchestrator().redis.resolved_url == "redis://localhost:6379/0"
    monkeypatch.setenv("REDIS_HOST", "elsewhere")
    monkeypatch.setenv("REDIS_PASSWORD", "p@ss")
    assert Orchestrator().redis.resolved_url == "redis://:p%40ss@elsewhere:6379/0"
    monkeypatch.setenv("REDIS_URL", "unix:///tmp/s")
    assert Orchestrator().redis.resolved_url == "unix:///tmp/s"


def test_parameters_that_exclude_each_other_or_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="redis_url and redis_port exclude each other"):
        Orchestrator(redis_url="redis://h", redis_port=1)
    with pytest.raises(ConfigError, match="redis_max_connections=0"):
        Orchestrator(redis_max_connections=0)
    with pytest.raises(ConfigError, match="namespace"):
        Orchestrator(namespace="{braces}")


def test_each_agent_is_registered_once() -> None:
    orchestrator = Orchestrator()
    orchestrator.register_runner(agent=PLAIN)
    with pytest.raises(ConfigError, match="there is a runner for an agent named 'plain' already"):
        orchestrator.register_runner(agent=Agent(name="plain"))
    with pytest.raises(ConfigError, match="give an Agent"):
        orchestrator.register_runner(agent=Agent)  # type: ignore[arg-type]


# -- event loops


def test_one_orchestrator_in_several_event_loops_one_after_the_other(redis_url: str, namespace: str) -> None:
    """As scripts use it: `asyncio.run` again and again, and no close. Nothing is left behind that would warn."""
    orchestrator = Orchestrator(redis_url=redis_url, namespace=namespace)

    async def enqueue() -> str:
        return (await orchestrator.enqueue_task(PLAIN, owner_id="o", payload=AgentContext(query="q"))).id

    async def look(task_id: str) -> str:
        async for update in orchestrator.subscribe_to_updates("o"):
            assert update["task_id"] == task_id
            break
        return await orchestrator.cancel_task(task_id)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            assert asyncio.run(look(asyncio.run(enqueue()))) == "cancelled"
            gc.collect()


def test_one_orchestrator_in_two_threads_at_the_same_time(redis_url: str, namespace: str) -> None:
    orchestrator = Orchestrator(redis_url=redis_url, namespace=namespace)
    found: list[str] = []

    async def work() -> None:
        for _ in range(20):
            task = await orchestrator.enqueue_task(PLAIN, owner_id="o", payload=AgentContext(query="q"))
            found.append(await orchestrator.get_task_status(task.id))

    threads = [threading.Thread(target=lambda: asyncio.run(work())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == ["queued"] * 40


async def test_many_callers_share_one_connection(system: System) -> None:
    client = b"id="
    before = (await system.execute("CLIENT", "LIST")).count(client)
    tasks = await asyncio.gather(*(system.submit(PLAIN) for _ in range(200)))
    assert len(set(tasks)) == 200
    assert (await system.execute("CLIENT", "LIST")).count(client) - before <= 1


async def test_no_server_there(namespace: str) -> None:
    """One clear error, quickly, without a password in it; and another attempt is another attempt."""
    port = free_port()
    orchestrator = Orchestrator(redis_url=f"redis://:sekret@127.0.0.1:{port}/0", namespace=namespace)
    for _ in range(2):
        with pytest.raises(MailboxUnavailableError, match=str(port)) as raised:
            await orchestrator.enqueue_task(PLAIN, owner_id="o", payload=AgentContext(query="q"))
        assert "sekret" not in str(raised.value)
    with pytest.raises(MailboxError):
        async for _ in orchestrator.subscribe_to_updates("o"):
            pass
    await orchestrator.close()


async def test_the_snippet_of_the_introduction(system: System) -> None:
    """Enqueue, then subscribe, and print the output."""

    def get_weather(location: str) -> str:
        """Get the current weather for a location."""
        return f"The weather in {location} is sunny"

    agent = Agent(
        description="Weather Assistant",
        instructions="You are a helpful weather assistant.",
        tools=[get_weather],
        model=ScriptedModel([call("get_weather", location="London"), say("Sunny!")]),
    )
    await system.start(agent)
    orchestrator = system.orchestrator
    task = agent.create_task(owner_id="user123", payload=AgentContext(query="What's the weather in London?"))
    await orchestrator.enqueue_task(agent=agent, task=task)
    async for update in orchestrator.subscribe_to_updates(owner_id="user123"):
        if update["event_type"] == "agent_output":
            assert update["data"] == "Sunny!"
            break
