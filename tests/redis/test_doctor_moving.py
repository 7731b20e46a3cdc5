"""The doctor while everything moves: what is only under way is no finding, and what is wrong is found all the same.

Real: the Valkey, the scripts. Nothing is fake; the histories are those of `test_mailbox_histories.py`. The doctor has a
connection of its own, so its reading falls between their steps at random.
"""

import asyncio

import pytest

from factorial.config import RedisConfig
from factorial.mailbox import Mailbox
from factorial.mailbox.checkup import Checkup, check, checkup
from factorial.mailbox.visit import visiting
from tests.chaos.figures import long_or_short
from tests.redis.test_mailbox_histories import History

STEPS = 200
SEEDS = long_or_short(200, 6)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The histories move on every millisecond: short pauses see as much."""
    monkeypatch.setattr(checkup, "_PAUSE", 0.005)
    monkeypatch.setattr(checkup, "_TOKEN_PAUSE", 0.1)


async def watched(redis: RedisConfig, life: "asyncio.Task[None]") -> list[Checkup]:
    """What the doctor finds, again and again, for as long as the task lasts."""
    found = []
    async with visiting(redis) as visit:
        while not life.done():
            found.append(await check(visit.scripts.commands, visit.scripts.keys, events=False))
    await life
    return found


async def live(history: History) -> None:
    for _ in range(STEPS):
        await history.happen()


@pytest.mark.broken  # histories end their runs without events
async def test_no_false_alarm(redis_url: str, namespace: str) -> None:
    doubts = 0
    for seed in range(SEEDS):
        mailbox = await Mailbox.open(RedisConfig(url=redis_url, namespace=f"{namespace}-{seed}"))
        history = History(mailbox, seed)
        await history.register("p1")
        for found in await watched(mailbox.redis, asyncio.create_task(live(history))):
            assert [str(finding) for finding in found.findings] == [], seed
            doubts += found.doubts
        for key in await mailbox.connection.execute("KEYS", f"{mailbox.keys.prefix}*"):
            await mailbox.connection.execute("DEL", key)  # on a cluster, it may be another node than the next test's
        await mailbox.close()
    assert doubts > 0, "the doctor has met what was under way"


@pytest.mark.broken
async def test_what_is_lost_is_found_while_all_else_moves(redis_url: str, namespace: str) -> None:
    mailbox = await Mailbox.open(RedisConfig(url=redis_url, namespace=namespace))
    try:
        history = History(mailbox, 99)
        await history.register("p1")
        await mailbox.connection.execute(
            "HSET", mailbox.keys.run("lost"), "status", "queued", "agent", "a", "owner", "x"
        )
        found = await watched(mailbox.redis, asyncio.create_task(live(history)))
        for one in found:
            assert {finding.subject for finding in one.findings} == {"run lost", "owner x"}
    finally:
        await mailbox.close()
