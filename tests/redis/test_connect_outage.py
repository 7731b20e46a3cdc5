"""The shared connection in bad weather. Real: the Valkey, its restarts, the TCP proxy that cuts and stalls."""

import asyncio
import random
import socket
import time

import pytest
from redis.exceptions import ResponseError

from factorial.config import RedisConfig
from factorial.errors import MailboxFullError, MailboxRefusedError, MailboxUnavailableError
from factorial.mailbox.transport.connection import Connection
from tests.proxy import Proxy
from tests.support import wait_until
from tests.valkey import ValkeyServer, free_port


async def test_commands_in_flight_are_sent_again(own_valkey: ValkeyServer) -> None:
    """The connection is cut between the commands' execution and their answers: nobody notices."""
    own_valkey.start()
    async with Proxy(own_valkey.port) as proxy:
        connection = await Connection.open(RedisConfig(url=proxy.url))
        await connection.execute("PING")
        proxy.hold_replies()
        callers = [asyncio.create_task(connection.execute("ECHO", n)) for n in range(20)]
        await wait_until(lambda: b"$2\r\n19" in proxy.requests)
        proxy.cut()
        proxy.pass_replies()
        assert await asyncio.gather(*callers) == [str(n).encode() for n in range(20)]
        assert connection.stats.reconnects == 1
        await connection.close()


async def test_answers_stay_in_step_while_the_connection_is_cut_again_and_again(own_valkey: ValkeyServer) -> None:
    """Twenty callers, cuts at random moments, a caller cancelled now and then: each answer is its caller's own."""
    own_valkey.start()
    chance = random.Random(7)
    async with Proxy(own_valkey.port) as proxy:
        connection = await Connection.open(RedisConfig(url=proxy.url))

        async def caller(name: int) -> None:
            n = 0
            while connection.stats.reconnects < 6:
                n += 1
                text = f"{name}-{n}-{'x' * chance.randrange(2000)}"
                asking = asyncio.create_task(connection.execute("ECHO", text))
                if chance.random() < 0.1:
                    await asyncio.sleep(0)
                    asking.cancel()
                    await asyncio.wait([asking])
                else:
                    assert await asking == text.encode()

        async def trouble() -> None:
            while True:
                await asyncio.sleep(chance.uniform(0, 0.03))
                proxy.cut()

        troubling = asyncio.create_task(trouble())
        await asyncio.gather(*(caller(name) for name in range(20)))
        troubling.cancel()
        await connection.close()


async def test_a_server_that_refuses_writes_is_not_flooded_with_connections(own_valkey: ValkeyServer) -> None:
    """It is a replica for as long as we try: each link is given up once, and the pauses between them grow."""
    own_valkey.start()
    connection = await Connection.open(RedisConfig(url=own_valkey.url, retry_for=2))
    moved: list[None] = []
    connection.on_moved = lambda: moved.append(None)
    own_valkey.command("REPLICAOF", "127.0.0.1", str(free_port()))
    asked = await asyncio.gather(*(connection.execute("SET", f"x{n}", 1) for n in range(50)), return_exceptions=True)
    assert all(isinstance(answer, MailboxUnavailableError) for answer in asked)
    assert 1 <= connection.stats.reconnects <= 15
    assert len(moved) <= connection.stats.reconnects + 1
    own_valkey.command("REPLICAOF", "NO", "ONE")
    assert await connection.execute("SET", "x", 1) == b"OK"
    await connection.close()


async def test_a_restarted_server_is_found_again(own_valkey: ValkeyServer) -> None:
    """Commands issued while it is down wait for it."""
    own_valkey.start()
    connection = await Connection.open(RedisConfig(url=own_valkey.url))
    own_valkey.stop()
    waiting = [asyncio.create_task(connection.execute("ECHO", n)) for n in range(5)]
    await asyncio.sleep(0.05)
    own_valkey.start()
    assert await asyncio.gather(*waiting) == [b"0", b"1", b"2", b"3", b"4"]
    await connection.close()


async def test_a_server_that_stays_away_is_reported_in_time(own_valkey: ValkeyServer) -> None:
    """After `retry_for`, with the address and the time; and a later command gets its own time."""
    own_valkey.start()
    connection = await Connection.open(RedisConfig(url=own_valkey.url, retry_for=0.3))
    own_valkey.stop()
    for _ in range(2):
        begun = time.monotonic()
        with pytest.raises(MailboxUnavailableError, match=rf"127.0.0.1:{own_valkey.port}.*tried again for 0.3 s"):
            await connection.execute("PING")
        assert 0.25 < time.monotonic() - begun < 2
    own_valkey.start()
    assert await connection.execute("PING") == b"PONG"
    await connection.close()


async def test_a_command_that_ends_the_connection_is_not_sent_for_ever(own_valkey: ValkeyServer) -> None:
    """The connection is lost each time it is sent; those after it are served."""
    own_valkey.start()
    async with Proxy(own_valkey.port) as proxy:
        proxy.poison = b"poison"
        connection = await Connection.open(RedisConfig(url=proxy.url, retry_for=0.4))
        with pytest.raises(MailboxUnavailableError, match=r"closed the connection.*tried again for 0.4 s"):
            await connection.execute("ECHO", "poison")
        assert 2 < connection.stats.reconnects < 40
        assert await connection.execute("PING") == b"PONG"
        await connection.close()


async def test_a_command_that_is_too_large_is_reported_to_its_caller(own_valkey: ValkeyServer) -> None:
    """The server answers with an error and hangs up; the connection recovers."""
    own_valkey.start(proto_max_bulk_len="1mb")
    connection = await Connection.open(RedisConfig(url=own_valkey.url))
    with pytest.raises(ResponseError, match="invalid bulk length"):
        await connection.execute("SET", "k", b"x" * 2_000_000)
    assert await connection.execute("PING") == b"PONG"
    await connection.close()


async def test_silence_counts_as_a_lost_connection(own_valkey: ValkeyServer) -> None:
    """The answer does not come within `timeout`: the command is sent again on a new connection."""
    own_valkey.start()
    async with Proxy(own_valkey.port) as proxy:
        connection = await Connection.open(RedisConfig(url=proxy.url, timeout=0.3))
        proxy.hold_replies()
        asking = asyncio.create_task(connection.execute("ECHO", "hello"))
        await wait_until(lambda: proxy.connections == 2, message="no new connection")
        proxy.pass_replies()
        assert await asking == b"hello"
        await connection.close()


async def test_a_long_answer_is_not_silence(own_valkey: ValkeyServer) -> None:
    """An answer of 1 MB that takes longer than `timeout` to come in: nothing is lost or sent twice."""
    own_valkey.start()
    async with Proxy(own_valkey.port) as proxy:
        connection = await Connection.open(RedisConfig(url=proxy.url, timeout=0.3))
        await connection.execute("SET", "k", b"x" * 1_000_000)
        proxy.pause = 0.05
        begun = time.monotonic()
        assert len(await connection.execute("GET", "k")) == 1_000_000
        assert time.monotonic() - begun > 0.6
        assert connection.stats.reconnects == 0
        await connection.close()


async def test_close_during_an_outage(own_valkey: ValkeyServer) -> None:
    """Waiting callers get an error, and no task keeps trying to reconnect."""
    own_valkey.start()
    connection = await Connection.open(RedisConfig(url=own_valkey.url))
    own_valkey.stop()
    waiting = asyncio.create_task(connection.execute("PING"))
    await asyncio.sleep(0.05)
    await connection.close()
    with pytest.raises(MailboxUnavailableError, match="was closed"):
        await waiting
    await wait_until(lambda: len(asyncio.all_tasks()) == 1)


async def test_a_full_server_says_so(own_valkey: ValkeyServer) -> None:
    """Plain commands and scripts that write; reading goes on."""
    own_valkey.start()
    own_valkey.command("SET", "some", "data")
    own_valkey.command("CONFIG", "SET", "maxmemory", "1")
    connection = await Connection.open(RedisConfig(url=own_valkey.url))
    with pytest.raises(MailboxFullError, match="nothing was stored"):
        await connection.execute("SET", "k", "v")
    with pytest.raises(MailboxFullError):
        await connection.execute("EVAL", "return redis.call('SET', KEYS[1], 'v')", 1, "k")
    assert await connection.execute("GET", "k") is None
    await connection.close()


async def test_a_replica_that_becomes_the_primary_takes_the_command(own_valkey: ValkeyServer) -> None:
    """READONLY in the time of a failover: the command is tried again."""
    own_valkey.start()
    own_valkey.command("REPLICAOF", "127.0.0.1", str(free_port()))
    connection = await Connection.open(RedisConfig(url=own_valkey.url))
    storing = asyncio.create_task(connection.execute("SET", "k", "v"))
    await wait_until(lambda: connection.stats.reconnects > 0)
    own_valkey.command("REPLICAOF", "NO", "ONE")
    assert await storing == b"OK"
    await connection.close()


async def test_nothing_listens_there() -> None:
    """The message says what to do; a patient opener keeps trying for `retry_for`."""
    url = f"redis://localhost:{free_port()}"
    with pytest.raises(MailboxUnavailableError, match=r"nothing listens there.*REDIS_URL.*embedded:DIR"):
        await Connection.open(RedisConfig(url=url))
    with pytest.raises(MailboxUnavailableError, match=r"/nowhere/s: nothing listens"):
        await Connection.open(RedisConfig(url="unix:///nowhere/s"))
    begun = time.monotonic()
    with pytest.raises(MailboxUnavailableError):
        await Connection.open(RedisConfig(url=url, retry_for=0.3), patient=True)
    assert time.monotonic() - begun >= 0.3


async def test_a_patient_opener_waits_for_the_server(own_valkey: ValkeyServer) -> None:
    """Both were started at the same time, and the server is the slower."""
    opening = asyncio.create_task(Connection.open(RedisConfig(url=own_valkey.url), patient=True))
    await asyncio.sleep(0.05)
    own_valkey.start()
    connection = await opening
    assert await connection.execute("PING") == b"PONG"
    await connection.close()


async def test_somebody_else_listens_there() -> None:
    """A server that accepts and says nothing, and one that speaks another protocol."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(MailboxUnavailableError, match="does not answer"):
            await Connection.open(RedisConfig(url=url, timeout=0.2))

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    web = await asyncio.start_server(greet, "127.0.0.1", 0)
    with pytest.raises((MailboxRefusedError, MailboxUnavailableError), match=r"127\.0\.0\.1"):
        await Connection.open(RedisConfig(url=f"redis://127.0.0.1:{web.sockets[0].getsockname()[1]}"))
    web.close()


@pytest.mark.parametrize("place", ["tcp", "unix"])
async def test_a_wrong_password_is_refused_and_not_shown(own_valkey: ValkeyServer, place: str) -> None:
    """At once, with the address, without the password that was tried."""
    own_valkey.start(requirepass="right", unixsocket=str(own_valkey.directory / "s"))
    where = f"127.0.0.1:{own_valkey.port}" if place == "tcp" else str(own_valkey.directory / "s")
    scheme = "redis" if place == "tcp" else "unix"
    for credentials in (":wr0ng@", ""):
        url = f"{scheme}://{credentials}{where}"
        with pytest.raises(MailboxRefusedError, match="password") as raised:
            connection = await Connection.open(RedisConfig(url=url))
            try:
                await connection.execute("PING")
            finally:
                await connection.close()
        assert "wr0ng" not in str(raised.value)
    connection = await Connection.open(RedisConfig(url=f"{scheme}://:right@{where}"))
    assert await connection.execute("PING") == b"PONG"
    await connection.close()


async def test_a_password_that_was_changed_ends_the_waiting(own_valkey: ValkeyServer) -> None:
    """The server comes back with another password: trying again is no use."""
    own_valkey.start(requirepass="one")
    url = own_valkey.url.replace("redis://", "redis://:one@")
    connection = await Connection.open(RedisConfig(url=url, retry_for=30))
    own_valkey.stop()
    waiting = asyncio.create_task(connection.execute("PING"))
    await asyncio.sleep(0)
    own_valkey.start(requirepass="two")
    with pytest.raises(MailboxRefusedError):
        await waiting
    await connection.close()
