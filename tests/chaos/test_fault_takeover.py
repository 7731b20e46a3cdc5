"""The server dies under load, and another takes over by itself: in a cluster, and with sentinels.

Real: supervisor, worker processes, client, all Valkey servers and sentinels. Scripted: the model.

Replication is asynchronous: what the dead server had accepted in its last moment, and not yet passed on, is lost with
it. That is Redis's own limit. Shown is that nothing else is, and how long the failover takes for those who ask.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.chaos.figures import LONG, fault, long_or_short
from tests.chaos.load import Load
from tests.chaos.system import System, SystemAt
from tests.support import wait_until
from tests.valkey import ValkeyServer, is_in_step, needs_valkey_9, running
from tests.valkey_cluster import ValkeyCluster
from tests.valkey_sentinel import ValkeySentinels


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ValkeyCluster]:
    """Three primaries, each with a replica."""
    (tmp_path / "cluster").mkdir()
    with running(ValkeyCluster(tmp_path / "cluster", replicas=3, node_timeout=2.5)) as cluster:
        yield cluster


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[ValkeySentinels]:
    """A primary with a replica, and three sentinels."""
    (tmp_path / "sentinels").mkdir()
    with running(ValkeySentinels(tmp_path / "sentinels", down_after=2.0)) as sentinels:
        yield sentinels


async def survives(
    system: System, fault_name: str, primary: ValkeyServer, replica: ValkeyServer, strike: Callable[[], None]
) -> None:
    """`strike` in the middle of the work of two processes: all that was replicated is done, once, and so is all that
    was asked for afterwards.
    """
    system.configure(heartbeat=3.0, batch_size=20)  # the lease outlives the failover
    await system.start()
    async with Load(system, every=0.05) as load:
        await load.accepts(20)
        kept = set(load.accepted_at)
        await wait_until(lambda: is_in_step(replica, primary), message="the replica in step")
        await asyncio.to_thread(strike)
        struck = time.monotonic()
        forgettable = load.issued.keys() - kept

        def is_over() -> bool:
            return any(at > struck + 0.2 for at in load.accepted_at.values())

        await wait_until(is_over, message="tasks to be accepted by the successor")
        await load.accepts(long_or_short(2000, 20), timeout=120)
    after = await load.settle()
    times = sorted(load.accepted_at.values())
    silence = max(later - earlier for earlier, later in pairwise(times))
    lost_otherwise = {*after.lost} - forgettable
    fault(
        fault_name,
        nobody_was_served_for=f"{silence:.1f} s", accepted=after.accepted, replicated_before=len(kept),
        lost_by_replication=len(after.lost) - len(lost_otherwise), lost_otherwise=len(lost_otherwise),
        ended=after.existing, completed_twice=after.completed - after.existing, retries=after.retries,
        reclaimed=after.reclaimed, refused=len(load.refused), repeated_steps=after.repeated.total(),
    )  # fmt: skip
    assert not lost_otherwise
    assert after.completed == after.existing
    assert after.retries == 0
    assert not load.refused


async def test_a_replica_takes_over_for_a_node_of_the_cluster(
    cluster: ValkeyCluster, system_at: SystemAt, namespace: str
) -> None:
    """The URL names the dead node alone: the others were learned from it, and from each other."""
    serving = cluster.serving(namespace)
    successor = cluster.replica_of(serving)
    await survives(
        system_at(serving.url), "cluster: SIGKILL of the namespace's primary, its replica takes over",
        serving, successor, serving.stop,
    )  # fmt: skip
    assert cluster.serving(namespace) is successor


async def test_a_replica_is_promoted_by_the_sentinels(sentinels: ValkeySentinels, system_at: SystemAt) -> None:
    """They agree that the primary is dead."""
    dead, successor = sentinels.primary, sentinels.replica
    await survives(
        system_at(sentinels.url), "sentinel: SIGKILL of the primary, its replica is promoted",
        dead, successor, dead.stop,
    )  # fmt: skip
    assert sentinels.primary is successor


@pytest.mark.skipif(not LONG, reason="in the long run only; tests/redis/test_sentinel.py has a short one")
@needs_valkey_9
async def test_the_sentinels_are_told_to_fail_over(sentinels: ValkeySentinels, system_at: SystemAt) -> None:
    """SENTINEL FAILOVER, with which both change places: no server dies, all connections move."""
    primary, successor = sentinels.primary, sentinels.replica
    await survives(system_at(sentinels.url), "sentinel: failover by order", primary, successor, sentinels.fail_over)
    assert sentinels.primary is successor
