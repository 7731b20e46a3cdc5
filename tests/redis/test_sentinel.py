"""A primary with a replica, watched by sentinels: how it is found. Real: all five servers, the runner. Scripted: the
model. The failovers under load are in `tests/chaos/test_fault_takeover.py`.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from factorial import Agent
from factorial.config import RedisConfig
from factorial.errors import ConfigError, MailboxRefusedError, MailboxUnavailableError
from factorial.mailbox.transport.connection import Connection
from factorial.testing import ScriptedModel, say
from tests.harness import System
from tests.redis.strangers import is_passed_over
from tests.valkey import ValkeyServer, free_port, needs_valkey_9, running
from tests.valkey_cluster import ask
from tests.valkey_sentinel import Sentinel, ValkeySentinels


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeySentinels]:
    """They are shared by the tests of this file, none of which has a server die."""
    with running(ValkeySentinels(tmp_path_factory.mktemp("sentinels"), down_after=10.0)) as sentinels:
        yield sentinels


@pytest.fixture
async def system(sentinels: ValkeySentinels, namespace: str) -> AsyncIterator[System]:
    """A namespace of theirs. Asserts the invariants at the end."""
    async with System(sentinels.url, namespace) as system:
        yield system


@needs_valkey_9
async def test_a_task_outlives_a_failover_by_order(sentinels: ValkeySentinels, system: System) -> None:
    """Connections go over to the new primary, each by itself; subscribers hear of everything, once."""
    agent = Agent(name="talker", model=ScriptedModel(lambda messages: say("done")))
    await system.start(agent)
    first = await system.submit(agent)
    await system.ended(first)
    listening = asyncio.create_task(
        system.updates(lambda heard: [event["event_type"] for event in heard].count("run_completed") == 2)
    )
    before = sentinels.primary
    await asyncio.to_thread(sentinels.fail_over)
    second = await system.submit(agent)
    heard = await listening
    assert sentinels.primary is not before
    assert [event["id"] for event in heard if event["id"]] == [event["id"] for event in await system.events()]
    assert (await system.data(second))["payload"]["output"] == (await system.data(first))["payload"]["output"] == "done"
    async with await system.orchestrator.get_redis_client() as client:
        assert (await client.info("replication"))["role"] == "master"


async def test_a_sentinel_that_is_away_or_knows_nothing_does_not_matter(sentinels: ValkeySentinels) -> None:
    """One that answers is enough. If no primary is found, the message names each sentinel."""
    hosts, service = sentinels.url.removeprefix("redis+sentinel://").removesuffix("/0").split("/")
    away = f"127.0.0.1:{free_port()}"
    connection = await Connection.open(RedisConfig(url=f"redis+sentinel://{away},{hosts}/{service}"))
    assert connection.endpoint.route.url.partition("?")[0] == f"redis://127.0.0.1:{sentinels.primary.port}/"
    await connection.close()
    with pytest.raises(MailboxUnavailableError, match=f"{away}: nothing listens.*knows no primary called 'other'"):
        await Connection.open(RedisConfig(url=f"redis+sentinel://{away},{hosts}/other"))


async def test_a_sentinel_that_refuses_does_not_matter(sentinels: ValkeySentinels, own_valkey: ValkeyServer) -> None:
    """Its address belongs to another server now, which is not a sentinel, or requires a password."""
    await is_passed_over(own_valkey, sentinels.url)


async def test_a_sentinel_that_is_down_is_named_once_and_nothing_is_said_of_the_server() -> None:
    place = f"127.0.0.1:{free_port()}"
    url = f"redis+sentinel://{place}/mymaster"
    with pytest.raises(MailboxUnavailableError) as away:
        await Connection.open(RedisConfig(url=url))
    assert str(away.value) == f"{url}: no primary was found through the sentinels: {place}: nothing listens there"


async def test_a_server_that_is_not_a_sentinel(sentinels: ValkeySentinels) -> None:
    with pytest.raises(MailboxRefusedError, match=rf"127\.0\.0\.1:{sentinels.primary.port} is not a sentinel"):
        await Connection.open(RedisConfig(url=f"redis+sentinel://127.0.0.1:{sentinels.primary.port}/mymaster"))


async def test_a_replica_is_not_taken_for_the_primary(own_valkey: ValkeyServer, tmp_path: Path) -> None:
    """A sentinel may name one that is none any more, until it has heard of it."""
    own_valkey.start(replicaof=f"127.0.0.1 {free_port()}")
    sentinel = Sentinel(tmp_path, tcp=True)
    try:
        sentinel.start(monitor=f"127.0.0.1 {own_valkey.port} 1")
        with pytest.raises(MailboxUnavailableError, match=rf"no primary was found .*:{own_valkey.port} is a replica"):
            await Connection.open(RedisConfig(url=f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster"))
    finally:
        sentinel.stop()


async def test_servers_and_sentinels_have_passwords_of_their_own(sentinels: ValkeySentinels) -> None:
    """The first in the URL's beginning, the second as options; a wrong one is refused, and shown nowhere."""
    hosts = sentinels.url.removeprefix("redis+sentinel://").removesuffix("/mymaster/0")
    rights = ("on", ">s3cret1", "~*", "&*", "+@all")
    for server in sentinels.servers:
        ask(server, "ACL", "SETUSER", "ann", *rights)
    for sentinel in sentinels.sentinels:
        ask(sentinel, "ACL", "SETUSER", "guard", "on", ">s3cret2", "&*", "+@all")
    right = f"redis+sentinel://ann:s3cret1@{hosts}/mymaster/2?sentinel_username=guard&sentinel_password=s3cret2"
    connection = await Connection.open(RedisConfig(url=right))
    assert await connection.execute("ACL", "WHOAMI") == b"ann"
    assert b" db=2 " in await connection.execute("CLIENT", "INFO")
    await connection.close()
    for wrong in (right.replace("s3cret1", "s3cret3"), right.replace("s3cret2", "s3cret3")):
        with pytest.raises(MailboxRefusedError, match="check the user name and password") as refused:
            await Connection.open(RedisConfig(url=wrong))
        assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://h",
        "redis+sentinel://h/",
        "redis+sentinel://:s3cret@h:p/m",
        "redis+sentinel://h/m/x",
        "redis+sentinel://:12/34s3cret@h/0",
    ],
)
def test_a_url_that_cannot_be_one(url: str) -> None:
    with pytest.raises(ConfigError, match=r"HOST:PORT,HOST:PORT/SERVICE/DATABASE.*mymaster") as refused:
        RedisConfig(url=url)
    assert "s3cret" not in str(refused.value)
