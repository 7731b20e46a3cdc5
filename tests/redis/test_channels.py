"""Two systems with one namespace on two databases of one server hear nothing of each other.

Redis pub/sub is the same in all databases, so the channel's name has the number. Real: Valkey, orchestrators, redis-py.
"""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import ConnectionPool

from factorial import Agent, AgentContext, Orchestrator
from factorial.errors import ConfigError
from factorial.mailbox.transport.address import database_of
from factorial.testing import ScriptedModel, say
from tests.support import PATIENCE, wait_until
from tests.valkey import ValkeyServer, running

AGENT = Agent(name="a", model=ScriptedModel([say("hi")]))


def by_parts(port: int, monkeypatch: pytest.MonkeyPatch) -> Orchestrator:
    return Orchestrator(redis_host="127.0.0.1", redis_port=port, redis_db=3)


def by_path(port: int, monkeypatch: pytest.MonkeyPatch) -> Orchestrator:
    return Orchestrator(redis_url=f"redis://127.0.0.1:{port}/3")


def by_option(port: int, monkeypatch: pytest.MonkeyPatch) -> Orchestrator:
    return Orchestrator(redis_url=f"redis://127.0.0.1:{port}?db=3")


def by_path_and_option(port: int, monkeypatch: pytest.MonkeyPatch) -> Orchestrator:
    return Orchestrator(redis_url=f"redis://127.0.0.1:{port}/1?db=3")


def by_pool(port: int, monkeypatch: pytest.MonkeyPatch) -> Orchestrator:
    return Orchestrator(redis_pool=ConnectionPool(host="127.0.0.1", port=port, db=3))


def by_url_in_the_environment(port: int, monkeypatch: pytest.MonkeyPatch) -> Orchestrator:
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{port}/3")
    return Orchestrator()


def by_parts_in_the_environment(port: int, monkeypatch: pytest.MonkeyPatch) -> Orchestrator:
    for name, value in {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(port), "REDIS_DB": "3"}.items():
        monkeypatch.setenv(name, value)
    return Orchestrator()


WAYS = [
    by_parts, by_path, by_option, by_path_and_option, by_pool, by_url_in_the_environment, by_parts_in_the_environment,
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_server_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


async def heard_of_one_task(orchestrator: Orchestrator, channel: str) -> list[str]:
    """What arrives on `channel` while a task is enqueued and cancelled: types of events."""
    client = await orchestrator.get_redis_client()
    async with client, client.pubsub() as pubsub:
        await pubsub.subscribe(channel)
        await pubsub.get_message(timeout=PATIENCE)
        task = await orchestrator.enqueue_task(AGENT, owner_id="user1", payload=AgentContext(query="private"))
        await orchestrator.cancel_task(task.id)
        heard: list[str] = []
        while "run_cancelled" not in heard and (message := await pubsub.get_message(timeout=PATIENCE)):
            heard.append(json.loads(message["data"])["event_type"])
        return heard


@pytest.mark.parametrize("way", WAYS)
async def test_the_channel_is_the_one_on_which_events_are_published(
    own_valkey: ValkeyServer, way: Callable[..., Orchestrator], monkeypatch: pytest.MonkeyPatch
) -> None:
    own_valkey.start()
    async with way(own_valkey.port, monkeypatch) as orchestrator:
        channel = orchestrator.get_updates_channel("user1")
        assert channel == "{factorial:0}:channel@3:user1"
        assert await heard_of_one_task(orchestrator, channel) == ["run_enqueued", "run_cancelled"]


async def test_the_channel_of_a_database_behind_a_unix_socket() -> None:
    with tempfile.TemporaryDirectory(prefix="fct-") as folder, running(ValkeyServer(Path(folder))) as server:
        async with Orchestrator(redis_url=f"{server.url}?db=3") as orchestrator:
            channel = orchestrator.get_updates_channel("user1")
            assert channel == "{factorial:0}:channel@3:user1"
            assert await heard_of_one_task(orchestrator, channel) == ["run_enqueued", "run_cancelled"]


async def test_a_subscriber_hears_nothing_of_another_database(own_valkey: ValkeyServer) -> None:
    own_valkey.start()
    at = own_valkey.url.removesuffix("/0")
    heard: dict[int, list[str]] = {0: [], 1: [], 2: []}
    async with contextlib.AsyncExitStack() as stack:
        orchestrators = {n: await stack.enter_async_context(Orchestrator(redis_url=f"{at}/{n}")) for n in heard}

        async def listen(number: int) -> None:
            async for update in orchestrators[number].subscribe_to_updates("user1", after="$"):
                heard[number].append(update["task_id"])

        listening = [asyncio.create_task(listen(number)) for number in heard]
        names = [orchestrators[number].get_updates_channel("user1") for number in heard]
        client = await stack.enter_async_context(await orchestrators[0].get_redis_client())
        await wait_until(lambda: _are_subscribed(client, names))
        tasks = {}
        for number, orchestrator in orchestrators.items():
            task = await orchestrator.enqueue_task(AGENT, owner_id="user1", payload=AgentContext(query=str(number)))
            await orchestrator.cancel_task(task.id)
            tasks[number] = [task.id, task.id]
        await wait_until(lambda: all(len(ids) >= 2 for ids in heard.values()))
        for listener in listening:
            listener.cancel()
    assert heard == tasks


async def _are_subscribed(client: Any, channels: list[str]) -> bool:
    return all([(await client.pubsub_numsub(channel))[0][1] for channel in channels])


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("redis://h", 0),
        ("redis://h/", 0),
        ("redis://h:1/7", 7),
        ("rediss://:p%2F2@h:1/7", 7),
        ("redis+cluster://h:1,i:2", 0),
        ("redis://h:1,i:2/0", 0),
        ("redis+sentinel://h:1,i:2/mymaster", 0),
        ("redis+sentinel://h:1,i:2/mymaster/7", 7),
        ("redis+sentinel://h:1/mymaster?db=7", 7),
        ("unix:///run/s", 0),
        ("unix://u:p@/run/s?db=7", 7),
        ("embedded:folder/7", 0),
    ],
)
def test_the_database_of_a_url(url: str, database: int) -> None:
    assert database_of(url) == database
    name = f"channel@{database}" if database else "channel"
    assert Orchestrator(redis_url=url).get_updates_channel("ada") == f"{{factorial:0}}:{name}:ada"


def test_no_owner_has_the_channel_of_another_database() -> None:
    """An owner's id may look like the number of a database."""
    first, second = Orchestrator(redis_url="redis://h/0"), Orchestrator(redis_url="redis://h/1")
    names = {
        orchestrator.get_updates_channel(owner)
        for orchestrator in (first, second)
        for owner in ("x", "1:x", "@1:x", "channel@1:x")
    }
    assert len(names) == 8


def test_a_bad_url_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="there is no option 'dbb'"):
        Orchestrator(redis_url="redis://h?dbb=1").get_updates_channel("ada")
