"""The reports of supervisors, and the orders to them. A real Valkey; the supervisors are function
calls, and nothing moves but what the test calls.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from factorial.config import RedisConfig
from factorial.errors import ConfigError, MailboxFullError, SupervisionError
from factorial.mailbox import Namespace
from factorial.mailbox.operations import lease
from factorial.mailbox.operations.claim import ClaimRequest, claim
from factorial.mailbox.operations.enqueue import enqueue
from factorial.mailbox.supervisors import orders, reports
from factorial.mailbox.supervisors.orders import Inbox, MalformedOrder, Order
from factorial.mailbox.transport.blocking import BlockingConnection
from factorial.mailbox.views.queues import COUNTED, read_queues
from tests.redis.stored import contents
from tests.support import wait_until

NONE = {place.column: 0 for place in COUNTED}
REPORT = {"supervisor": "a", "pid": 1, "tree": {"id": "system", "type": "supervisor", "children": []}}


@pytest.fixture
async def blocking(mailbox: Namespace) -> AsyncIterator[BlockingConnection]:
    blocking = await BlockingConnection.open(mailbox.redis)
    yield blocking
    await blocking.close()


@pytest.fixture
def inbox(mailbox: Namespace, blocking: BlockingConnection) -> Inbox:
    """The control mailbox of supervisor `a`."""
    return Inbox(mailbox.scripts, blocking, "a")


async def publish(mailbox: Namespace, *names: str) -> None:
    for name in names:
        await reports.publish(mailbox.scripts, supervisor=name, report={**REPORT, "supervisor": name})


async def silence(mailbox: Namespace, name: str, seconds: float) -> None:
    """As if the supervisor had reported last so many seconds ago."""
    now, _ = await mailbox.connection.execute("TIME")
    moment = (int(now) - seconds) * 1000
    await mailbox.connection.execute("ZADD", f"{mailbox.keys.prefix}supervisors", moment, name)


async def send(mailbox: Namespace, order_id: str, supervisor: str = "a", patience: float = 60.0, **order: Any) -> None:
    await orders.send(
        mailbox.scripts, supervisor=supervisor, order_id=order_id, order=order or {"verb": "drain"}, patience=patience
    )


async def taken(inbox: Inbox) -> Order:
    async with asyncio.timeout(10):
        return await inbox.next()


async def finds_nothing(inbox: Inbox) -> bool:
    """Whether the inbox stays empty for as long as a stray order would take to arrive."""
    try:
        async with asyncio.timeout(0.3):
            await inbox.next()
    except TimeoutError:
        return True
    return False


async def test_reports_can_be_read_with_their_age(mailbox: Namespace) -> None:
    assert await reports.read_all(mailbox.scripts) == []
    await publish(mailbox, "b", "a")
    a, b = await reports.read_all(mailbox.scripts)
    assert (a.name, b.name) == ("a", "b")
    assert a.content == REPORT
    assert a.age < 2
    assert not a.is_lost


async def test_a_supervisor_that_is_silent_for_three_intervals_is_lost_until_its_next_report(
    mailbox: Namespace,
) -> None:
    await publish(mailbox, "a", "b")
    await silence(mailbox, "a", 40)
    a, b = await reports.read_all(mailbox.scripts)
    assert a.is_lost
    assert 39 < a.age < 43
    assert not b.is_lost
    await publish(mailbox, "a")
    assert not any(one.is_lost for one in await reports.read_all(mailbox.scripts))


async def test_a_supervisor_that_is_silent_for_an_hour_is_forgotten_with_the_next_report(mailbox: Namespace) -> None:
    await publish(mailbox, "a", "b", "c")
    await silence(mailbox, "a", 3_700)
    await silence(mailbox, "b", 3_500)
    await publish(mailbox, "c")
    assert [one.name for one in await reports.read_all(mailbox.scripts)] == ["b", "c"]
    found = await contents(mailbox.connection, mailbox.redis.namespace)
    assert set(found["supervisors"][""]) == set(found["reports"][""]) == {"b", "c"}


async def test_a_supervisor_that_has_withdrawn_leaves_nothing(mailbox: Namespace) -> None:
    before = await contents(mailbox.connection, mailbox.redis.namespace)
    await publish(mailbox, "a")
    await send(mailbox, "1")
    for _ in range(2):  # every command may be sent again
        await reports.withdraw(mailbox.scripts, supervisor="a")
    after = await contents(mailbox.connection, mailbox.redis.namespace)
    assert after.pop("order") == {"1": b"1"}  # it expires: see below
    assert after == before


async def test_a_report_that_is_too_large_is_stored_without_its_children(mailbox: Namespace) -> None:
    children = [{"id": f"a.{number}", "type": "worker", "last_exit": "x" * 1000} for number in range(5000)]
    report = {**REPORT, "tree": {**REPORT["tree"], "children": children}}  # type: ignore[dict-item]
    await reports.publish(mailbox.scripts, supervisor="a", report=report)
    [heard] = await reports.read_all(mailbox.scripts)
    assert heard.content == REPORT


async def test_a_malformed_report_is_skipped(mailbox: Namespace) -> None:
    await publish(mailbox, "a", "b")
    await mailbox.connection.execute("HSET", f"{mailbox.keys.prefix}reports", "a", "[not json")
    assert [one.name for one in await reports.read_all(mailbox.scripts)] == ["b"]


async def test_an_order_reaches_its_supervisor_and_no_other(
    mailbox: Namespace, inbox: Inbox, blocking: BlockingConnection
) -> None:
    await publish(mailbox, "a", "b")
    await send(mailbox, "1", supervisor="b", verb="stop", now=True)
    await send(mailbox, "2", supervisor="a", verb="drain", target="planner")
    order = await taken(inbox)
    assert (order.id, order.content, order.patience) == ("2", {"verb": "drain", "target": "planner"}, 60.0)
    assert order.age < 2
    assert await finds_nothing(inbox)
    assert (await taken(Inbox(mailbox.scripts, blocking, "b"))).id == "1"


async def test_orders_are_taken_in_the_order_in_which_they_were_sent(mailbox: Namespace, inbox: Inbox) -> None:
    await publish(mailbox, "a")
    for number in range(5):
        await send(mailbox, str(number))
    assert [(await taken(inbox)).id for _ in range(5)] == ["0", "1", "2", "3", "4"]


async def test_an_order_that_is_sent_twice_is_found_once(mailbox: Namespace, inbox: Inbox) -> None:
    await publish(mailbox, "a")
    await send(mailbox, "1")
    await send(mailbox, "1")
    assert await mailbox.connection.execute("LLEN", mailbox.keys.orders("a")) == 1
    assert (await taken(inbox)).id == "1"
    await send(mailbox, "1")  # also if it was taken meanwhile
    assert await finds_nothing(inbox)
    assert await mailbox.connection.execute("EXISTS", mailbox.keys.orders("a")) == 0
    assert 0 < await mailbox.connection.execute("PTTL", f"{mailbox.keys.prefix}order:1") <= 600_000


async def test_an_order_that_could_not_be_removed_is_recognised_when_it_is_found_again(
    mailbox: Namespace, inbox: Inbox
) -> None:
    await publish(mailbox, "a")
    await send(mailbox, "1")
    [stored] = await mailbox.connection.execute("LRANGE", mailbox.keys.orders("a"), 0, -1)
    assert (await taken(inbox)).id == "1"
    await mailbox.connection.execute("RPUSH", mailbox.keys.orders("a"), stored)
    assert await finds_nothing(inbox)


async def test_an_order_is_not_lost_with_the_connection_that_waits_for_it(
    mailbox: Namespace, inbox: Inbox, blocking: BlockingConnection
) -> None:
    await publish(mailbox, "a")
    connection = await blocking.execute("CLIENT", "ID")
    waiting = asyncio.create_task(inbox.next())
    client = f"id={connection} "

    async def waits() -> bool:
        clients = (await mailbox.connection.execute("CLIENT", "LIST")).decode()
        return any(line.startswith(client) and "cmd=blmove" in line for line in clients.splitlines())

    await wait_until(waits)
    await asyncio.gather(
        mailbox.connection.execute("CLIENT", "KILL", "ID", connection), send(mailbox, "1")
    )  # in one write: the connection is closed with the order on its way
    async with asyncio.timeout(10):
        assert (await waiting).id == "1"


async def test_an_order_is_stale_when_its_sender_does_not_wait_any_more(mailbox: Namespace, inbox: Inbox) -> None:
    await publish(mailbox, "a")
    await send(mailbox, "old", patience=0.2)
    await send(mailbox, "new", patience=60)
    begun = await server_time(mailbox)
    await wait_until(lambda: later(mailbox, begun + 0.3))
    old, new = await taken(inbox), await taken(inbox)
    assert (old.id, old.is_stale) == ("old", True)
    assert (new.id, new.is_stale) == ("new", False)


async def test_orders_that_are_not_taken_expire(mailbox: Namespace) -> None:
    await publish(mailbox, "a")
    await send(mailbox, "1", patience=60)
    await send(mailbox, "2", patience=0.1)
    assert 50_000 < await mailbox.connection.execute("PTTL", mailbox.keys.orders("a")) <= 60_000
    await reports.withdraw(mailbox.scripts, supervisor="a")
    await publish(mailbox, "a")
    await send(mailbox, "3", patience=0.1)

    async def is_gone() -> bool:
        return bool(await mailbox.connection.execute("EXISTS", mailbox.keys.orders("a")) == 0)

    await wait_until(is_gone)


async def server_time(mailbox: Namespace) -> float:
    seconds, microseconds = await mailbox.connection.execute("TIME")
    return int(seconds) + int(microseconds) / 1e6


async def later(mailbox: Namespace, moment: float) -> bool:
    return await server_time(mailbox) > moment


async def test_an_order_for_an_unknown_supervisor_is_refused(mailbox: Namespace) -> None:
    with pytest.raises(SupervisionError, match="no supervisor 'a'"):
        await send(mailbox, "1")


async def test_a_full_control_mailbox_accepts_no_more(mailbox: Namespace) -> None:
    await publish(mailbox, "a")
    for number in range(100):
        await send(mailbox, str(number))
    with pytest.raises(MailboxFullError, match="100 orders waiting"):
        await send(mailbox, "100")


async def test_an_order_that_is_too_large_is_refused(mailbox: Namespace) -> None:
    await publish(mailbox, "a")
    with pytest.raises(SupervisionError, match="10000 is the most"):
        await send(mailbox, "1", verb="drain", target="x" * 20_000)


@pytest.mark.parametrize("name", ["", "a b", "a" * 129, "ä", "a\n"])
async def test_names_that_cannot_be_a_key(mailbox: Namespace, name: str) -> None:
    with pytest.raises(ConfigError, match="letters, digits"):
        await publish(mailbox, name)


@pytest.mark.parametrize(
    "stored",
    [
        "", "nonsense", "1 {", "1 []", "1 {}", b"\xff\xfe",
        'x {"id":"1","patience":1,"order":{}}',
        '1 {"id":"a b","patience":1,"order":{}}',
        '1 {"id":"1","patience":"x","order":{}}',
    ],
)  # fmt: skip
async def test_a_malformed_order_is_reported_once_and_removed(
    mailbox: Namespace, inbox: Inbox, stored: str | bytes
) -> None:
    await publish(mailbox, "a")
    await mailbox.connection.execute("RPUSH", mailbox.keys.orders("a"), stored)
    await send(mailbox, "1")
    with pytest.raises(MalformedOrder):
        await taken(inbox)
    assert (await taken(inbox)).id == "1"


async def test_an_answer_is_kept_for_its_reader_and_the_first_one_stands(
    mailbox: Namespace, blocking: BlockingConnection
) -> None:
    waiting = asyncio.create_task(orders.wait_for_answer(mailbox.scripts, blocking, order_id="1", seconds=10))
    await orders.answer(mailbox.scripts, order_id="1", text="drained planner")
    await orders.answer(mailbox.scripts, order_id="1", error="too late")
    assert await waiting == {"ok": True, "text": "drained planner"}
    # It can be read again, and expires.
    again = await orders.wait_for_answer(mailbox.scripts, blocking, order_id="1", seconds=10)
    assert again == {"ok": True, "text": "drained planner"}
    assert await mailbox.connection.execute("LLEN", mailbox.keys.answer("1")) == 1
    assert 500_000 < await mailbox.connection.execute("PTTL", mailbox.keys.answer("1")) <= 600_000


async def test_an_answer_with_an_error_and_one_that_never_arrives(
    mailbox: Namespace, blocking: BlockingConnection
) -> None:
    await orders.answer(mailbox.scripts, order_id="1", error="x" * 100_000)
    answer = await orders.wait_for_answer(mailbox.scripts, blocking, order_id="1", seconds=10)
    assert answer is not None
    assert answer["ok"] is False
    assert len(json.dumps(answer)) < 5_000
    assert await orders.wait_for_answer(mailbox.scripts, blocking, order_id="2", seconds=0.1) is None


async def test_counts_of_the_named_agents_and_of_those_with_processes(mailbox: Namespace) -> None:
    for number in range(3):
        await enqueue(
            mailbox.scripts, task_id=f"t{number}", agent="planner", owner_id="o", conversation=[b"{}"], fields={}
        )
    await lease.register(mailbox.scripts, process="p", agent="planner", lease=60, patience=1, about={})
    await claim(mailbox.scripts, ClaimRequest(process="p", worker="w", agent="planner", count=1, recovery_limit=3))
    planner = NONE | {"ready": 2, "held": 1}
    queues = await read_queues(mailbox.scripts, ["weather", "weather"])
    assert queues == {"planner": planner, "weather": NONE}
    assert await read_queues(mailbox.scripts, []) == {"planner": planner}


@pytest.mark.broken  # entries without their runs
async def test_suspects_and_runs_in_backoff_or_parked_are_counted_separately(redis_url: str, namespace: str) -> None:
    mailbox = await Namespace.open(RedisConfig(url=redis_url, namespace=namespace))
    try:
        execute, keys = mailbox.connection.execute, mailbox.keys
        await execute("RPUSH", f"{keys.prefix}suspects:planner", "t1", "t2")
        await execute("ZADD", f"{keys.prefix}due:planner", 1, "t3", 2, "t4", 3, "t5")
        await execute("ZADD", f"{keys.prefix}due:planner", 4, "t6")  # the deadline of a parked one
        await execute("SADD", f"{keys.prefix}parked:planner", "t6", "t7")
        assert await read_queues(mailbox.scripts, ["planner"]) == {
            "planner": NONE | {"suspects": 2, "backoff": 3, "parked": 2}
        }
    finally:
        await mailbox.close()
