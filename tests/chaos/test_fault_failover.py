"""A replica is promoted under load, before it has heard of all that the primary has accepted.

Real: supervisor, worker processes, client, a Valkey and its replica, the TCP proxy in front that is turned over to the
replica. Scripted: the model. The replication passes through a proxy, too, that holds it up before the failover: how
much is lost is our choice.

What was not replicated is lost: that is Redis's own limit, and the server does not know of it. Shown is that nothing
else is: what the replica has is whole, goes on from where it was, and no process keeps what it does not execute.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.chaos.figures import fault, long_or_short
from tests.chaos.load import Load
from tests.chaos.system import System, SystemAt
from tests.proxy import Proxy
from tests.support import wait_until
from tests.valkey import ValkeyServer, is_in_step

NOT_REPLICATED = long_or_short(3.0, 0.7)
"""Seconds by which the replica is behind when it is promoted."""


class Pair:
    """A primary, its replica, and the way to whichever of them is to be spoken to."""

    def __init__(self, primary: ValkeyServer, replica: ValkeyServer, front: Proxy, replication: Proxy) -> None:
        self.primary, self.replica = primary, replica
        self.front, self.replication = front, replication

    def is_in_step(self) -> bool:
        """Whether the replica has all that the primary had when this was asked."""
        return is_in_step(self.replica, self.primary)

    def promote(self) -> None:
        """Make the replica a primary, as it is; new connections lead there."""
        assert self.replica.command("REPLICAOF", "NO", "ONE").startswith(b"+OK")
        self.front.server_port = self.replica.port


@pytest.fixture
async def pair(tmp_path: Path, own_valkey: ValkeyServer) -> AsyncIterator[Pair]:
    """A primary and a replica that is in step with it."""
    (tmp_path / "replica").mkdir()
    replica = ValkeyServer(tmp_path / "replica", tcp=True)
    own_valkey.start(repl_diskless_sync_delay="0")
    try:
        async with Proxy(own_valkey.port) as front, Proxy(own_valkey.port) as replication:
            replica.start()
            replica.command("REPLICAOF", "127.0.0.1", str(replication.port))
            pair = Pair(own_valkey, replica, front, replication)
            await wait_until(pair.is_in_step, message="the replica in step")
            yield pair
    finally:
        replica.stop()


@pytest.fixture
def far_system(pair: Pair, system_at: SystemAt) -> System:
    """A system that speaks to whom the front leads."""
    return system_at(pair.front.url)


@pytest.mark.parametrize("old_primary", long_or_short(["is dead", "lives on"], ["is dead"]))
async def test_what_the_replica_has_goes_on_and_nothing_is_held_for_ever(
    pair: Pair, far_system: System, old_primary: str
) -> None:
    """The old primary is killed; or it lives on for a while, and some connections still lead to it (a split brain)."""
    far_system.configure(heartbeat=0.4, missed=15, batch_size=20)  # the lease outlives the failover
    await far_system.start()
    # Turns that outlast it: some are in their model call when the replica hears no more, and end when it is promoted.
    async with Load(far_system, every=0.02, turns=1, model_seconds=0.4, tool_seconds=NOT_REPLICATED + 0.1) as load:
        await load.accepts(20)
        kept = set(load.accepted_at)
        await wait_until(pair.is_in_step, message="the replica in step")
        pair.replication.hold_replies()
        await asyncio.sleep(NOT_REPLICATED)
        if old_primary == "is dead":
            pair.primary.stop()
            pair.promote()
        else:
            pair.promote()
            pair.front.cut(0.5)
            await asyncio.sleep(NOT_REPLICATED)  # both of them are written to
        forgettable = load.issued.keys() - kept
        pair.front.cut()
        await load.accepts(20)
    after = await load.settle()
    fault(
        f"replica promoted {NOT_REPLICATED:g} s behind, the old primary {old_primary}",
        accepted=after.accepted, lost_by_replication=len(after.lost), lost_otherwise=len({*after.lost} - forgettable),
        ended=after.existing, completed_twice=after.completed - after.existing, retries=after.retries,
        reclaimed=after.reclaimed, repeated_steps=after.repeated.total(),
    )  # fmt: skip
    assert after.lost and set(after.lost) <= forgettable
    assert after.completed == after.existing
    assert after.retries == 0
