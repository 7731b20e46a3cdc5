"""The control mailbox: a supervisor takes orders and publishes reports, also after malformed orders and outages.

The server is a real Valkey. Fake: the operations, which record the calls.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from factorial.config import RedisConfig
from factorial.mailbox import Namespace
from factorial.mailbox.supervisors import orders, reports
from factorial.mailbox.transport.blocking import BlockingConnection
from tests.supervisor.served import FakeOperations, serve
from tests.support import wait_until
from tests.valkey import ValkeyServer

numbers = itertools.count()


@pytest.fixture
async def mailbox(redis_url: str, namespace: str) -> AsyncIterator[Namespace]:
    mailbox = await Namespace.open(RedisConfig(url=redis_url, namespace=namespace))
    yield mailbox
    await mailbox.close()


@pytest.fixture
async def operations(mailbox: Namespace) -> AsyncIterator[FakeOperations]:
    """The operations of supervisor `a`, which takes orders."""
    operations = FakeOperations()
    async with serve(mailbox, operations):
        await is_known(mailbox)
        yield operations


async def is_known(mailbox: Namespace, name: str = "a") -> None:
    async def there() -> bool:
        return any(one.name == name and not one.is_lost for one in await reports.read_all(mailbox.scripts))

    await wait_until(there, message=f"supervisor {name} is known")


async def send(mailbox: Namespace, patience: float = 30.0, **order: Any) -> str:
    order_id = f"order-{next(numbers)}"
    await orders.send(mailbox.scripts, supervisor="a", order_id=order_id, order=order, patience=patience)
    return order_id


async def answer(mailbox: Namespace, order_id: str, seconds: float = 10.0) -> dict[str, Any]:
    blocking = await BlockingConnection.open(mailbox.redis)
    try:
        found = await orders.wait_for_answer(mailbox.scripts, blocking, order_id=order_id, seconds=seconds)
    finally:
        await blocking.close()
    assert found is not None, f"no answer to {order_id}"
    return found


async def asked(mailbox: Namespace, **order: Any) -> dict[str, Any]:
    return await answer(mailbox, await send(mailbox, **order))


@pytest.mark.parametrize(
    ("order", "done"),
    [
        ({"verb": "drain", "target": "weather"}, "drain weather"),
        ({"verb": "drain", "target": ""}, "drain"),
        ({"verb": "resume", "target": "weather"}, "resume weather"),
        ({"verb": "restart", "target": "weather.1"}, "restart weather.1"),
        ({"verb": "scale", "runner": "weather", "processes": 4}, "scale weather 4"),
        ({"verb": "stop", "now": False}, "stop gracefully"),
        ({"verb": "stop", "now": True}, "stop now"),
    ],
)
async def test_each_order_is_carried_out_and_answered(
    mailbox: Namespace, operations: FakeOperations, order: dict[str, Any], done: str
) -> None:
    assert await asked(mailbox, **order) == {"ok": True, "text": f"done: {done}"}
    assert operations.asked == [done]


@pytest.mark.parametrize(
    ("order", "error"),
    [
        ({"verb": "drain", "target": "nowhere"}, "there is no 'nowhere' here; there are: weather, weather.1"),
        ({"verb": "drain", "target": "bug"}, "it failed unexpectedly, see the supervisor's log: ZeroDivisionError"),
        ({"verb": "explode"}, "this supervisor does not know this order: explode"),
        ({"verb": "drain"}, "does not know this order: drain"),
        ({"verb": "drain", "target": 3}, "does not know this order: drain 3"),
        ({"verb": "scale", "runner": "weather", "processes": "4"}, "does not know this order: scale weather 4"),
        ({"verb": "scale", "runner": "weather", "processes": True}, "does not know this order"),
        ({"verb": "stop", "now": 1}, "does not know this order"),
        ({}, "does not know this order"),
    ],
)
async def test_an_order_that_cannot_be_carried_out_is_answered_and_the_next_one_is(
    mailbox: Namespace, operations: FakeOperations, order: dict[str, Any], error: str
) -> None:
    refused = await asked(mailbox, **order)
    assert refused["ok"] is False
    assert error in refused["error"]
    assert (await asked(mailbox, verb="drain", target="weather"))["ok"]


async def test_a_malformed_order_is_logged_and_the_next_one_is_carried_out(
    mailbox: Namespace, operations: FakeOperations, caplog: pytest.LogCaptureFixture
) -> None:
    await mailbox.connection.execute("RPUSH", mailbox.keys.orders("a"), "nonsense")
    assert (await asked(mailbox, verb="drain", target="weather"))["ok"]
    assert "a malformed order was removed from the control mailbox: b'nonsense'" in caplog.text


async def test_a_long_order_does_not_keep_a_stop_waiting(mailbox: Namespace, operations: FakeOperations) -> None:
    slow = await send(mailbox, verb="restart", target="slow")
    await wait_until(lambda: operations.asked == ["restart slow"])
    stop = await send(mailbox, verb="stop", now=False)
    await wait_until(lambda: operations.asked == ["restart slow", "stop gracefully"])
    operations.finish.set()
    assert (await answer(mailbox, stop))["ok"]
    assert (await answer(mailbox, slow)) == {"ok": True, "text": "done: restart slow"}


async def test_orders_are_carried_out_one_at_a_time(
    mailbox: Namespace, operations: FakeOperations, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    slow = await send(mailbox, verb="restart", target="slow")
    await wait_until(lambda: operations.asked == ["restart slow"])
    drain = await send(mailbox, verb="drain", target="weather")
    await wait_until(lambda: "waits for its turn: drain weather" in caplog.text)
    assert operations.asked == ["restart slow"]
    operations.finish.set()
    assert (await answer(mailbox, drain))["ok"]
    assert (await answer(mailbox, slow))["ok"]
    assert operations.asked == ["restart slow", "drain weather"]
    assert "waits for its turn: restart" not in caplog.text


async def test_an_order_that_has_not_started_in_time_is_refused_and_never_carried_out(
    mailbox: Namespace, operations: FakeOperations
) -> None:
    async with operations.turn:  # as during a reload
        drain = await send(mailbox, verb="drain", target="weather", patience=0.3)
        refused = await answer(mailbox, drain)
        assert refused["error"].startswith(
            "not started within 0.3 s, because another order or a reload was in progress"
        )
    assert (await asked(mailbox, verb="resume", target="weather"))["ok"]
    assert operations.asked == ["resume weather"]


async def test_a_stop_does_not_wait_for_its_turn(mailbox: Namespace, operations: FakeOperations) -> None:
    async with operations.turn:
        assert (await asked(mailbox, verb="stop", now=False))["ok"]


async def test_the_answer_distinguishes_a_wrong_order_from_one_that_cannot_be_done(
    mailbox: Namespace, operations: FakeOperations
) -> None:
    assert (await asked(mailbox, verb="drain", target="nowhere"))["kind"] == "usage"
    assert "kind" not in await asked(mailbox, verb="drain", target="resting")


async def test_an_order_in_progress_when_the_supervisor_ends_is_answered(mailbox: Namespace) -> None:
    operations = FakeOperations()
    async with serve(mailbox, operations) as ear:
        await is_known(mailbox)
        slow = await send(mailbox, verb="restart", target="slow")
        await wait_until(lambda: operations.asked == ["restart slow"])
        ear.cancel()
        assert await answer(mailbox, slow) == {"ok": False, "error": "the supervisor ended before it was done"}


async def test_a_stale_order_is_refused(mailbox: Namespace) -> None:
    await reports.publish(mailbox.scripts, supervisor="a", report={})
    stale = await send(mailbox, verb="drain", target="weather", patience=0.05)
    good = await send(mailbox, verb="resume", target="weather")  # keeps the mailbox from expiring
    begun = int((await mailbox.connection.execute("TIME"))[0])

    async def a_second_later() -> bool:
        return int((await mailbox.connection.execute("TIME"))[0]) > begun + 1

    await wait_until(a_second_later)
    operations = FakeOperations()
    async with serve(mailbox, operations):
        assert (await answer(mailbox, good))["ok"]
        refused = await answer(mailbox, stale)
    assert "its sender waited for 0.05 s: it was dropped" in refused["error"]
    assert operations.asked == ["resume weather"]


async def test_two_supervisors_carry_out_only_their_own_orders(mailbox: Namespace, operations: FakeOperations) -> None:
    other = FakeOperations("b")
    async with serve(mailbox, other):
        await is_known(mailbox, "b")
        await asked(mailbox, verb="drain", target="weather")
        assert (operations.asked, other.asked) == (["drain weather"], [])


async def test_a_status_after_the_answer_shows_what_was_done(mailbox: Namespace, operations: FakeOperations) -> None:
    await asked(mailbox, verb="drain", target="weather")
    [heard] = await reports.read_all(mailbox.scripts)
    assert heard.content["tree"]["children"][0]["children"][0]["state"] == "drained"


async def test_reports_are_published_repeatedly(mailbox: Namespace, operations: FakeOperations) -> None:
    operations.state = "restarting"

    async def is_told() -> bool:
        [heard] = await reports.read_all(mailbox.scripts)
        return str(heard.content).count("restarting") == 1

    await wait_until(is_told)


async def test_a_supervisor_that_ends_withdraws(mailbox: Namespace) -> None:
    async with serve(mailbox, FakeOperations()):
        await is_known(mailbox)
    assert await reports.read_all(mailbox.scripts) == []


async def test_a_report_that_fails_is_logged_once_and_orders_are_still_carried_out(
    mailbox: Namespace, operations: FakeOperations, caplog: pytest.LogCaptureFixture
) -> None:
    operations.fails_to_report = True
    for _ in range(2):  # each publishes a report when it is done
        assert (await asked(mailbox, verb="drain", target="weather"))["ok"]
    assert caplog.text.count("cannot be operated") == 1
    operations.fails_to_report = False
    with caplog.at_level(logging.INFO):
        await asked(mailbox, verb="drain", target="weather")
    assert caplog.text.count("a can be operated again") == 1


async def test_an_outage_of_the_server_is_logged_once_and_survived(
    own_valkey: ValkeyServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    own_valkey.start()
    config = RedisConfig(url=own_valkey.url, namespace=namespace, retry_for=0.2, timeout=0.5)
    mailbox = await Namespace.open(config)
    operations = FakeOperations()
    try:
        async with serve(mailbox, operations) as ear:
            await is_known(mailbox)
            own_valkey.stop()
            logged = "a cannot be operated, its tree goes on"
            await wait_until(lambda: logged in caplog.text)
            own_valkey.start()
            with caplog.at_level(logging.INFO):
                await wait_until(lambda: "a can be operated again" in caplog.text)
            assert (await asked(mailbox, verb="drain", target="weather"))["ok"]
            assert caplog.text.count(logged) == 1
            assert not ear.done()
    finally:
        await mailbox.close()


async def test_a_supervisor_ends_in_time_while_the_server_is_away(own_valkey: ValkeyServer, namespace: str) -> None:
    own_valkey.start()
    mailbox = await Namespace.open(RedisConfig(url=own_valkey.url, namespace=namespace))
    try:
        async with serve(mailbox, FakeOperations()) as ear:
            await is_known(mailbox)
            own_valkey.stop()
            ear.cancel()
            async with asyncio.timeout(4):
                await asyncio.wait([ear])
    finally:
        await mailbox.close()
