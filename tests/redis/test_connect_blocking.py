"""Waiting for work. The server is a real Valkey; nothing is fake."""

import asyncio
import time

import pytest
from redis.exceptions import ResponseError

from factorial.config import RedisConfig
from factorial.errors import MailboxUnavailableError
from factorial.mailbox.transport.blocking import BlockingConnection
from factorial.mailbox.transport.connection import Connection
from tests.support import wait_until
from tests.valkey import ValkeyServer, free_port


async def _until_somebody_waits(commands: Connection) -> None:
    async def somebody_waits() -> bool:
        return b"blocked_clients:1" in await commands.execute("INFO", "clients")

    await wait_until(somebody_waits, message="nobody waits in a BLPOP")


async def test_it_wakes_with_what_was_pushed(one_server_url: str, namespace: str) -> None:
    """At once, although the wait is longer than `timeout`: a blocking connection has none."""
    config = RedisConfig(url=one_server_url, timeout=0.1)
    commands, blocking = await Connection.open(config), await BlockingConnection.open(config)
    waiting = asyncio.create_task(blocking.execute("BLPOP", namespace, 30))
    await asyncio.sleep(0.3)
    await commands.execute("RPUSH", namespace, "token")
    assert await waiting == [namespace.encode(), b"token"]
    assert await blocking.execute("BLPOP", namespace, 0.01) is None
    await blocking.close()
    await commands.close()


async def test_a_lost_connection_ends_the_wait_and_is_reopened(own_valkey: ValkeyServer) -> None:
    """None, as if the time had run out, so that the caller looks for work; then it waits again as before."""
    own_valkey.start()
    config = RedisConfig(url=own_valkey.url)
    commands, blocking = await Connection.open(config), await BlockingConnection.open(config)
    waiting = asyncio.create_task(blocking.execute("BLPOP", "k", 0))
    await _until_somebody_waits(commands)
    own_valkey.stop()
    assert await waiting is None
    reopening = asyncio.create_task(blocking.execute("BLPOP", "k", 0))
    await asyncio.sleep(0.1)
    assert not reopening.done()
    own_valkey.start()
    assert await reopening is None
    waiting = asyncio.create_task(blocking.execute("BLPOP", "k", 0))
    await _until_somebody_waits(commands)
    await commands.execute("RPUSH", "k", "token")
    assert await waiting == [b"k", b"token"]
    await blocking.close()
    await commands.close()


async def test_a_server_that_refuses_writes_is_asked_less_and_less_often(own_valkey: ValkeyServer) -> None:
    """It is a replica for the time being."""
    own_valkey.start(replicaof=f"127.0.0.1 {free_port()}")
    blocking = await BlockingConnection.open(RedisConfig(url=own_valkey.url))
    begun = asyncio.get_running_loop().time()
    for _ in range(5):
        assert await blocking.execute("BLPOP", "k", 5) is None
    pauses = sum(0.02 * 2**n for n in range(5))
    assert asyncio.get_running_loop().time() - begun >= pauses / 2, "the jitter takes no more than a half"
    await blocking.close()


async def test_cancelling_gives_the_connection_up(own_valkey: ValkeyServer) -> None:
    """The server pops nothing for someone who has left; the next wait opens a new connection."""
    own_valkey.start()
    config = RedisConfig(url=own_valkey.url)
    commands, blocking = await Connection.open(config), await BlockingConnection.open(config)
    waiting = asyncio.create_task(blocking.execute("BLPOP", "k", 0))
    await _until_somebody_waits(commands)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    async def nobody_waits() -> bool:
        return b"blocked_clients:0" in await commands.execute("INFO", "clients")

    await wait_until(nobody_waits)
    await commands.execute("RPUSH", "k", "token")
    assert await commands.execute("LLEN", "k") == 1
    assert await blocking.execute("BLPOP", "k", 0) is None
    assert await blocking.execute("BLPOP", "k", 0) == [b"k", b"token"]
    await blocking.close()
    await commands.close()


async def test_a_wait_that_the_server_breaks_off_ends_with_none(own_valkey: ValkeyServer) -> None:
    """As in a failover (UNBLOCKED)."""
    own_valkey.start()
    config = RedisConfig(url=own_valkey.url)
    commands, blocking = await Connection.open(config), await BlockingConnection.open(config)
    client = await blocking.execute("CLIENT", "ID")
    waiting = asyncio.create_task(blocking.execute("BLPOP", "k", 0))
    await _until_somebody_waits(commands)
    await commands.execute("CLIENT", "UNBLOCK", client, "ERROR")
    assert await waiting is None
    await blocking.close()
    await commands.close()


async def test_a_wait_that_is_over_when_the_connection_is_lost_ends_with_none(own_valkey: ValkeyServer) -> None:
    """The event loop stood still: what it has missed comes all at once."""
    own_valkey.start()
    commands = await Connection.open(RedisConfig(url=own_valkey.url))
    blocking = await BlockingConnection.open(RedisConfig(url=own_valkey.url, timeout=0.1))
    waiting = asyncio.create_task(blocking.execute("BLPOP", "k", 0, seconds=2))
    await _until_somebody_waits(commands)
    own_valkey.stop()
    time.sleep(2.5)  # noqa: ASYNC251 - this is what stands still
    assert await waiting is None
    await blocking.close()
    await commands.close()


async def test_mistakes_are_reported(one_server_url: str, namespace: str) -> None:
    """A wrong command, a second one at the same time, and no server at the start."""
    blocking = await BlockingConnection.open(RedisConfig(url=one_server_url))
    with pytest.raises(ResponseError, match="timeout"):
        await blocking.execute("BLPOP", namespace, "soon")
    waiting = asyncio.create_task(blocking.execute("BLPOP", namespace, 0.1))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="one command at a time"):
        await blocking.execute("BLPOP", namespace, 0)
    assert await waiting is None
    await blocking.close()
    with pytest.raises(MailboxUnavailableError):
        await BlockingConnection.open(RedisConfig(url=f"redis://127.0.0.1:{free_port()}"))
