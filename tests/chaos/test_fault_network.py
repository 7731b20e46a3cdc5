"""A bad network between all of the system and its server: connections are cut, pieces arrive late, or in part.

Real: supervisor, worker processes, client, a Valkey of the test's own, the TCP proxy that everything goes through.
Scripted: the model.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.chaos.figures import fault, long_or_short
from tests.chaos.load import Load
from tests.chaos.system import System, SystemAt
from tests.proxy import Proxy
from tests.valkey import ValkeyServer


@pytest.fixture
async def proxy(own_valkey: ValkeyServer) -> AsyncIterator[Proxy]:
    """The way to the test's own server, which is started."""
    own_valkey.start()
    async with Proxy(own_valkey.port) as proxy:
        yield proxy


@pytest.fixture
def far_system(proxy: Proxy, system_at: SystemAt) -> System:
    """A system whose every connection goes through the proxy."""
    return system_at(proxy.url)


async def cut_some(proxy: Proxy) -> None:
    proxy.cut(0.5)


async def cut_all(proxy: Proxy) -> None:
    proxy.cut()


async def lose_answers(proxy: Proxy) -> None:
    """What is asked for is done, and nobody hears of it."""
    proxy.hold_replies()
    await asyncio.sleep(0.05)  # while that happens
    proxy.cut()
    proxy.pass_replies()


async def truncate(proxy: Proxy) -> None:
    proxy.truncate()


async def do_no_harm(proxy: Proxy) -> None:
    pass


async def test_nothing_is_lost_or_done_twice_on_a_bad_network(proxy: Proxy, far_system: System) -> None:
    chance = random.Random(11)
    # For how long, how late each piece is, what is done to the connections and how often. On a slow way some seconds
    # pass until a new connection has made itself known.
    phases: list[tuple[str, float, float, Callable[[Proxy], Awaitable[None]], float]] = [
        ("connections are cut", long_or_short(12.0, 0.8), 0.0, cut_some, 0.1),
        ("answers are lost", long_or_short(12.0, 1.2), 0.0, lose_answers, 0.1),
        ("messages are truncated", long_or_short(12.0, 0.8), 0.0, truncate, 0.1),
        ("500 ms delay", long_or_short(12.0, 1.8), 0.5, do_no_harm, 0.1),
        ("500 ms delay, cut", long_or_short(25.0, 0.8), 0.5, cut_all, long_or_short(8.0, 0.8)),
    ]
    far_system.configure(heartbeat=5.0, batch_size=20)  # a beat takes a second, a new connection several
    await far_system.start()
    began = time.monotonic()
    async with Load(far_system, every=0.05) as load:
        for what, seconds, delay, harm, every in phases:
            accepted, cuts, ended = len(load.accepted_at), proxy.cuts, time.monotonic() + seconds
            proxy.delay = delay
            while time.monotonic() < ended:
                await harm(proxy)
                await asyncio.sleep(chance.uniform(0.5, 1.5) * every)
            await load.accepts()
            accepted, cuts = len(load.accepted_at) - accepted, proxy.cuts - cuts
            fault(f"network: {what}, for {seconds:g} s", cuts=cuts, accepted_meanwhile=accepted)
            assert cuts > 0 or harm is do_no_harm
        proxy.delay = 0.0
        await load.accepts(10)
    after = await load.settle()
    fault(
        "network: all of that",
        cuts=proxy.cuts, in_the_middle_of_a_message=proxy.truncated, accepted=after.accepted, lost=len(after.lost),
        completed_twice=after.completed - after.existing, retries=after.retries, reclaimed=after.reclaimed,
        handed_over=after.handed_over, repeated_steps=after.repeated.total(),
        tasks_per_second=f"{after.completed / (time.monotonic() - began):.0f}",
    )  # fmt: skip
    assert proxy.truncated > 0
    assert not load.refused
    assert after.completed == after.existing == after.accepted
    assert after.retries == after.reclaimed == after.handed_over == after.repeated.total() == 0
