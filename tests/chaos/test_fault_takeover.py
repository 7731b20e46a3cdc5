"""The server dies under load, and another takes over by itself: in a cluster, and with sentinels.

Real: supervisor, worker processes, client, all Valkey servers and sentinels. Scripted: the model.

Replication is asynchronous: what the dead server had accepted in its last moment, and not yet passed on, is lost with
it. That is Redis's own limit. Shown is that nothing else is, and how long the failover takes for those who ask.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.chaos.figures import LONG, fault, long_or_short
from tests.chaos.load import Load
from tests.chaos.system import System
from tests.support import wait_until
from tests.valkey_cluster import ValkeyCluster
from tests.valkey_sentinel import ValkeySentinels

REPLICATION = 1.0
"""Seconds by which a replica on this machine may be behind, with much to spare."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ValkeyCluster]:
    """Three primaries, each with a replica."""
    (tmp_path / "cluster").mkdir()
    cluster = ValkeyCluster(tmp_path / "cluster", replicas=3, node_timeout=1.5)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[ValkeySentinels]:
    """A primary with a replica, and three sentinels."""
    (tmp_path / "sentinels").mkdir()
    sentinels = ValkeySentinels(tmp_path / "sentinels", down_after=1.0)
    try:
        sentinels.start()
        yield sentinels
    finally:
        sentinels.stop()


@pytest.fixture
async def system_at(tmp_path: Path, namespace: str) -> AsyncIterator[Callable[[str], System]]:
    """A system on the server of a URL."""
    made: list[System] = []

    def at(url: str) -> System:
        made.append(System(tmp_path, url, namespace))
        return made[-1]

    yield at
    for system in made:
        await system.clean_up()


async def survives(system: System, fault_name: str, strike: Callable[[], None]) -> None:
    """`strike` in the middle of the work of two processes: all that was replicated is done, once."""
    system.configure(heartbeat=3.0, batch_size=20)  # the lease outlives the failover
    await system.start()
    async with Load(system, every=0.05) as load:
        await load.accepts(20)
        begun = time.monotonic()
        await asyncio.to_thread(strike)
        struck = time.monotonic()

        def is_over() -> bool:
            return any(at > struck + 0.2 for at in load.accepted_at.values())

        await wait_until(is_over, 30, "tasks to be accepted by the successor")
        await load.accepts(long_or_short(2000, 20), timeout=120)
    after = await load.settle()
    times = sorted(load.accepted_at.values())
    silence = max(later - earlier for earlier, later in pairwise(times))
    in_last_moment = [task_id for task_id in after.lost if begun - REPLICATION < load.accepted_at[task_id]]
    fault(
        fault_name,
        nobody_was_served_for=f"{silence:.1f} s", accepted=after.accepted, lost_by_replication=len(in_last_moment),
        lost_otherwise=len(after.lost) - len(in_last_moment), ended=after.existing,
        completed_twice=after.completed - after.existing, retries=after.retries, reclaimed=after.reclaimed,
        refused=len(load.refused), repeated_steps=after.repeated.total(),
    )  # fmt: skip
    assert len(after.lost) == len(in_last_moment)
    assert after.completed == after.existing
    assert after.retries == 0
    assert not load.refused


async def test_a_replica_takes_over_for_a_node_of_the_cluster(
    cluster: ValkeyCluster, system_at: Callable[[str], System], namespace: str
) -> None:
    """The URL names the dead node alone: the others were learned from it, and from each other."""
    serving = cluster.serving(namespace)
    successor = cluster.replica_of(serving)
    await survives(
        system_at(serving.url), "cluster: SIGKILL of the namespace's primary, its replica takes over", serving.stop
    )
    assert cluster.serving(namespace) is successor


async def test_a_replica_is_promoted_by_the_sentinels(
    sentinels: ValkeySentinels, system_at: Callable[[str], System]
) -> None:
    """They agree that the primary is dead."""
    dead, successor = sentinels.primary, sentinels.replica
    await survives(system_at(sentinels.url), "sentinel: SIGKILL of the primary, its replica is promoted", dead.stop)
    assert sentinels.primary is successor


@pytest.mark.skipif(not LONG, reason="in the long run only; tests/redis/test_sentinel.py has a short one")
async def test_the_sentinels_are_told_to_fail_over(
    sentinels: ValkeySentinels, system_at: Callable[[str], System]
) -> None:
    """SENTINEL FAILOVER, with which both change places: no server dies, all connections move."""
    successor = sentinels.replica
    await survives(system_at(sentinels.url), "sentinel: failover by order", sentinels.fail_over)
    assert sentinels.primary is successor
