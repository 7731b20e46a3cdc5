"""Pub/sub for many subscribers over one connection. The server is a real Valkey; nothing is fake."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from factorial.config import RedisConfig
from factorial.errors import MailboxRefusedError, MailboxUnavailableError
from factorial.mailbox.transport.connection import Connection
from factorial.mailbox.transport.listener import Listener
from tests.proxy import Proxy
from tests.support import wait_until
from tests.valkey import ValkeyServer


class Subscriber:
    """Records the calls of its callbacks."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.gaps = 0

    def hear(self, message: bytes) -> None:
        self.messages.append(message)

    def miss(self) -> None:
        self.gaps += 1


@pytest.fixture
async def listener(redis_url: str) -> AsyncIterator[Listener]:
    listener = await Listener.open(RedisConfig(url=redis_url))
    yield listener
    await listener.close()


@pytest.fixture
async def commands(redis_url: str) -> AsyncIterator[Connection]:
    connection = await Connection.open(RedisConfig(url=redis_url))
    yield connection
    await connection.close()


async def test_a_message_reaches_every_subscriber_of_its_channel(
    listener: Listener, commands: Connection, namespace: str
) -> None:
    """From the moment `subscribe` returns, in order, over one subscription per channel."""
    first, second, other = Subscriber(), Subscriber(), Subscriber()
    await asyncio.gather(
        listener.subscribe(f"{namespace}:a", first.hear, first.miss),
        listener.subscribe(f"{namespace}:a", second.hear, second.miss),
        listener.subscribe(f"{namespace}:b", other.hear, other.miss),
    )
    for number in range(100):
        assert await commands.execute("PUBLISH", f"{namespace}:a", number) == 1
    await wait_until(lambda: len(second.messages) == 100)
    assert first.messages == second.messages == [str(n).encode() for n in range(100)]
    assert other.messages == []
    assert first.gaps == 0


async def test_the_last_unsubscriber_ends_the_subscription(
    listener: Listener, commands: Connection, namespace: str
) -> None:
    """Before that, the others go on hearing."""
    first, second = Subscriber(), Subscriber()
    await listener.subscribe(namespace, first.hear, first.miss)
    await listener.subscribe(namespace, second.hear, second.miss)
    await listener.unsubscribe(namespace, first.hear)
    assert await commands.execute("PUBLISH", namespace, "x") == 1
    await wait_until(lambda: second.messages)
    assert first.messages == []
    await listener.unsubscribe(namespace, second.hear)
    await listener.unsubscribe(namespace, second.hear)

    async def nobody_hears() -> bool:
        return bool(await commands.execute("PUBLISH", namespace, "y") == 0)

    await wait_until(nobody_hears)
    # And again, with a confirmation of its own.
    await listener.subscribe(namespace, first.hear, first.miss)
    assert await commands.execute("PUBLISH", namespace, "z") == 1
    await wait_until(lambda: first.messages == [b"z"])


async def test_a_cancelled_subscriber_takes_nobody_with_it(
    listener: Listener, commands: Connection, namespace: str
) -> None:
    """Two wait for the same confirmation; one leaves. Then all leave and one comes back."""
    first, second = Subscriber(), Subscriber()
    leaving = asyncio.create_task(listener.subscribe(namespace, first.hear, first.miss))
    staying = asyncio.create_task(listener.subscribe(namespace, second.hear, second.miss))
    await asyncio.sleep(0)
    leaving.cancel()
    await staying
    assert await commands.execute("PUBLISH", namespace, "x") == 1
    await wait_until(lambda: second.messages == [b"x"])
    assert first.messages == []
    for _ in range(20):
        await listener.unsubscribe(namespace, second.hear)
        leaving = asyncio.create_task(listener.subscribe(namespace, first.hear, first.miss))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
        await listener.subscribe(namespace, second.hear, second.miss)
        assert await commands.execute("PUBLISH", namespace, "y") == 1


async def test_every_subscriber_is_notified_of_an_interruption(own_valkey: ValkeyServer) -> None:
    """Once messages arrive again; those that were published meanwhile are missing, and that is what a gap means."""
    own_valkey.start()
    commands = await Connection.open(RedisConfig(url=own_valkey.url))
    async with Proxy(own_valkey.port) as proxy:
        listener = await Listener.open(RedisConfig(url=proxy.url))
        subscribers = {channel: Subscriber() for channel in ("a", "b")}
        for channel, subscriber in subscribers.items():
            await listener.subscribe(channel, subscriber.hear, subscriber.miss)
        for rounds in (1, 2):
            proxy.cut()
            await wait_until(lambda rounds=rounds: all(s.gaps == rounds for s in subscribers.values()))
            assert await commands.execute("PUBLISH", "b", rounds) == 1
            await wait_until(lambda rounds=rounds: len(subscribers["b"].messages) == rounds)
        await listener.close()
    await commands.close()


async def test_subscribing_during_an_outage_waits_for_the_server(own_valkey: ValkeyServer) -> None:
    """And one that left meanwhile is not subscribed again."""
    own_valkey.start()
    listener = await Listener.open(RedisConfig(url=own_valkey.url))
    before, during = Subscriber(), Subscriber()
    await listener.subscribe("before", before.hear, before.miss)
    own_valkey.stop()
    subscribing = asyncio.create_task(listener.subscribe("during", during.hear, during.miss))
    await asyncio.sleep(0.05)
    await listener.unsubscribe("before", before.hear)
    own_valkey.start()
    await subscribing
    commands = await Connection.open(RedisConfig(url=own_valkey.url))
    assert await commands.execute("PUBLISH", "before", "x") == 0
    assert await commands.execute("PUBLISH", "during", "x") == 1
    await wait_until(lambda: during.messages == [b"x"])
    await listener.close()
    await commands.close()


async def test_subscribing_in_vain_ends_with_a_message(own_valkey: ValkeyServer) -> None:
    """When the server stays away, and when the listener is closed meanwhile."""
    own_valkey.start()
    listener = await Listener.open(RedisConfig(url=own_valkey.url, timeout=0.1, retry_for=0.1))
    patient = await Listener.open(RedisConfig(url=own_valkey.url))
    own_valkey.stop()
    nobody = Subscriber()
    with pytest.raises(MailboxUnavailableError, match="does not confirm"):
        await listener.subscribe("c", nobody.hear, nobody.miss)
    waiting = asyncio.create_task(patient.subscribe("c", nobody.hear, nobody.miss))
    await asyncio.sleep(0.05)
    await patient.close()
    await listener.close()
    with pytest.raises(MailboxUnavailableError, match="was closed"):
        await waiting
    with pytest.raises(MailboxUnavailableError, match="was closed"):
        await listener.subscribe("c", nobody.hear, nobody.miss)


async def test_a_silent_connection_is_replaced(own_valkey: ValkeyServer) -> None:
    """The server is asked for a sign of life when nothing comes; a lively one is left alone."""
    own_valkey.start()
    async with Proxy(own_valkey.port) as proxy:
        listener = await Listener.open(RedisConfig(url=proxy.url, timeout=0.1))
        subscriber = Subscriber()
        await listener.subscribe("c", subscriber.hear, subscriber.miss)
        await wait_until(lambda: proxy.requests.count(b"PING") >= 3)
        assert proxy.connections == 1
        proxy.hold_replies()
        await wait_until(lambda: proxy.connections >= 2, message="the silent connection was kept")
        proxy.pass_replies()
        await wait_until(lambda: subscriber.gaps == 1)
        await listener.close()


async def test_a_channel_that_is_not_allowed(own_valkey: ValkeyServer) -> None:
    """Its subscriber gets the error. The others are served."""
    own_valkey.start()
    own_valkey.command("ACL", "SETUSER", "reader", "on", ">pw", "+@all", "~*", "resetchannels", "&open")
    listener = await Listener.open(RedisConfig(url=own_valkey.url.replace("//", "//reader:pw@")))
    subscriber = Subscriber()
    with pytest.raises(MailboxRefusedError, match=r"reader@127\.0\.0\.1.*ACL"):
        await listener.subscribe("secret", subscriber.hear, subscriber.miss)
    await listener.subscribe("open", subscriber.hear, subscriber.miss)
    await listener.close()


async def test_a_callback_that_fails_is_logged_and_cuts_nobody_off(
    listener: Listener, commands: Connection, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The next subscriber hears the message."""

    def fail(message: bytes) -> None:
        raise ValueError("not today")

    subscriber = Subscriber()
    await listener.subscribe(namespace, fail, subscriber.miss)
    await listener.subscribe(namespace, subscriber.hear, subscriber.miss)
    with caplog.at_level(logging.ERROR):
        await commands.execute("PUBLISH", namespace, "x")
        await wait_until(lambda: subscriber.messages == [b"x"])
    assert "not today" in caplog.text
