"""The shared connection in good weather. The server is a real Valkey on a unix socket; nothing is fake."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.exceptions import NoScriptError, ResponseError

from factorial.config import RedisConfig
from factorial.errors import ConfigError, MailboxUnavailableError
from factorial.mailbox.transport.connection import Connection


@pytest.fixture
async def connection(one_server_url: str) -> AsyncIterator[Connection]:
    connection = await Connection.open(RedisConfig(url=one_server_url))
    yield connection
    await connection.close()


async def test_answers_come_as_the_server_gives_them(connection: Connection, namespace: str) -> None:
    """Bytes, integers, lists and None."""
    assert await connection.execute("SET", f"{namespace}:a", "é") == b"OK"
    assert await connection.execute("GET", f"{namespace}:a") == "é".encode()
    assert await connection.execute("GET", f"{namespace}:none") is None
    assert await connection.execute("RPUSH", f"{namespace}:l", b"\x00\xff", 1, 0.5) == 3
    assert await connection.execute("LRANGE", f"{namespace}:l", 0, -1) == [b"\x00\xff", b"1", b"0.5"]


async def test_each_caller_gets_its_own_answer(connection: Connection) -> None:
    """A thousand at once, some of them wrong."""

    async def ask(number: int) -> object:
        return await connection.execute("ECHO", number) if number % 10 else await connection.execute("GETRANGE", number)

    answers = await asyncio.gather(*(ask(number) for number in range(1000)), return_exceptions=True)
    for number, answer in enumerate(answers):
        if number % 10:
            assert answer == str(number).encode()
        else:
            assert isinstance(answer, ResponseError) and "getrange" in str(answer)


async def test_commands_of_one_tick_leave_in_one_write(connection: Connection) -> None:
    """A hundred tasks that start together cost one write."""
    await connection.execute("PING")
    commands, writes = connection.stats.commands, connection.stats.writes
    await asyncio.gather(*(connection.execute("PING") for _ in range(100)))
    assert connection.stats.commands - commands == 100
    assert connection.stats.writes - writes == 1


async def test_stats_count_the_bytes_both_ways(connection: Connection) -> None:
    """`*1 $4 PING` is 14 bytes, `+PONG` 7."""
    out, back = connection.stats.bytes_out, connection.stats.bytes_in
    await connection.execute("PING")
    assert connection.stats.bytes_out - out == 14
    assert connection.stats.bytes_in - back == 7


async def test_an_unknown_script_is_reported_to_its_caller(connection: Connection) -> None:
    """What the script loader relies on."""
    with pytest.raises(NoScriptError):
        await connection.execute("EVALSHA", "0" * 40, 0)
    with pytest.raises(ResponseError, match=r"^SUPERSEDED by another"):
        await connection.execute("EVAL", "return redis.error_reply('SUPERSEDED by another')", 0)


async def test_a_cancelled_caller_does_not_shift_the_answers(connection: Connection) -> None:
    """Cancelled before its command is written, and while its answer is on the way."""
    for rounds in range(50):
        callers = [asyncio.create_task(connection.execute("ECHO", n)) for n in range(10)]
        for _ in range(rounds % 4):
            await asyncio.sleep(0)
        callers[3].cancel()
        callers[7].cancel()
        answers = await asyncio.gather(*callers, return_exceptions=True)
        for n, answer in enumerate(answers):
            assert answer == str(n).encode() or (n in (3, 7) and isinstance(answer, asyncio.CancelledError))


async def test_answers_larger_than_any_buffer(connection: Connection, namespace: str) -> None:
    """8 MB out and back, with small ones before and behind."""
    value = bytes(range(256)) * 32_768
    small, stored, big, last = await asyncio.gather(
        connection.execute("ECHO", "small"),
        connection.execute("SET", f"{namespace}:big", value),
        connection.execute("GET", f"{namespace}:big"),
        connection.execute("ECHO", "last"),
    )
    assert (small, stored, last) == (b"small", b"OK", b"last")
    assert big == value


async def test_many_large_commands_wait_until_the_socket_takes_more(connection: Connection, namespace: str) -> None:
    """64 writes of 1 MB, issued over several ticks: far more than a socket's buffer."""

    async def store(number: int) -> None:
        for _ in range(number % 5):
            await asyncio.sleep(0)
        await connection.execute("SET", f"{namespace}:{number}", bytes([number]) * 1_000_000)

    await asyncio.gather(*(store(number) for number in range(64)))
    for number in range(64):
        assert await connection.execute("GETRANGE", f"{namespace}:{number}", 999_999, -1) == bytes([number])
    await connection.execute("UNLINK", *(f"{namespace}:{number}" for number in range(64)))


async def test_close_tells_those_who_wait(one_server_url: str) -> None:
    """Commands on the way, not yet sent, and issued afterwards."""
    connection = await Connection.open(RedisConfig(url=one_server_url))
    on_the_way = asyncio.create_task(connection.execute("BLPOP", "nothing", 5))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    not_sent = connection.send("PING")
    await connection.close()
    await connection.close()
    for waiting in (on_the_way, not_sent, connection.execute("PING")):
        with pytest.raises(MailboxUnavailableError, match="was closed"):
            await waiting


async def test_the_url_chooses_the_database(one_server_url: str, namespace: str) -> None:
    """Database 1 does not see what is in database 0."""
    first = await Connection.open(RedisConfig(url=one_server_url))
    second = await Connection.open(RedisConfig(url=f"{one_server_url.removesuffix('/0')}?db=1"))
    await first.execute("SET", namespace, "x")
    assert await second.execute("GET", namespace) is None
    await first.close()
    await second.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://localhost", "redis://, rediss://, .*unix://"),
        ("redis://:hunter2@localhost:port", "HOST:PORT/DATABASE, the last two as numbers"),
        ("redis://:hunter2@localhost?sockets=3", "sockets"),
        ("redis://:hunter2@localhost?socket_timeout=soon", "socket_timeout"),
        ("embedded:here", "start the embedded server first"),
    ],
)
async def test_a_url_that_cannot_be_one(url: str, message: str) -> None:
    """The message says what is wrong, and no password."""
    with pytest.raises(ConfigError, match=message) as raised:
        await Connection.open(RedisConfig(url=url))
    assert "hunter2" not in str(raised.value)
