"""The server is out of memory, forgets its scripts, or is kept busy by somebody's slow script, under load.

Real: supervisor, worker processes, client, a Valkey of the test's own. Scripted: the model.
"""

import asyncio
import time

from factorial.config import RedisConfig
from factorial.errors import MailboxFullError
from factorial.mailbox.transport.connection import Connection
from tests.chaos.figures import fault, long_or_short
from tests.chaos.load import Load
from tests.chaos.system import System
from tests.support import wait_until
from tests.valkey import ValkeyServer

KEEP_BUSY = """
local function now() local time = redis.call('TIME') return time[1] + time[2] / 1000000 end
local ends = now() + ARGV[1]
repeat until now() >= ends
return 'done'
"""


async def test_a_full_server_takes_nothing_new_and_what_it_has_goes_on(
    own_valkey: ValkeyServer, own_system: System
) -> None:
    """Leases are renewed, steps and turns are kept, and tasks can be cancelled; nobody is told that anything went well
    which did not.
    """
    full_for = long_or_short(20.0, 3.0)
    own_valkey.start()
    own_system.configure(heartbeat=1.25, batch_size=20)
    await own_system.start()
    doomed = await own_system.enqueue(turns=2, long_turn=0, long_seconds=600)
    async with Load(own_system, every=0.03, model_seconds=0.2, tool_seconds=0.2) as load:
        await load.accepts(10)
        own_valkey.command("CONFIG", "SET", "maxmemory", "1mb")
        full_at = time.monotonic()
        await wait_until(lambda: load.refused, message="a task to be refused")
        accepted = set(load.accepted_at)
        await load.completed(accepted)
        drained_after = time.monotonic() - full_at
        await own_system.orchestrator.cancel_task(doomed.id)
        assert (await own_system.finished(doomed))["status"] == "cancelled"
        await asyncio.sleep(max(0.0, full_at + full_for - time.monotonic()))
        assert load.accepted_at.keys() == accepted
        own_valkey.command("CONFIG", "SET", "maxmemory", "0")
        await load.accepts(10)
    after = await load.settle()
    fault(
        f"server out of memory for {full_for:g} s (lease 2.5 s)",
        accepted=after.accepted, refused=len(load.refused), lost=len(after.lost),
        seconds_until_the_accepted_were_done=f"{drained_after:.1f}", retries=after.retries, reclaimed=after.reclaimed,
        handed_over=after.handed_over, repeated_steps=after.repeated.total(),
    )  # fmt: skip
    assert {type(refusal) for refusal in load.refused} == {MailboxFullError}
    assert after.completed == after.existing == after.accepted
    assert after.retries == after.reclaimed == after.handed_over == after.repeated.total() == 0


async def test_scripts_may_be_forgotten_and_somebody_elses_may_be_slow(
    own_valkey: ValkeyServer, own_system: System
) -> None:
    """A script that is not known any more is sent again. While a slow one runs, the server answers BUSY, for longer
    than every lease; in the long run, for longer than commands are tried again.
    """
    flushes, busy_for = long_or_short((300, 12.0), (20, 3.3))
    own_valkey.start(busy_reply_threshold="100")
    own_system.configure(heartbeat=1.5, batch_size=20)
    await own_system.start()
    somebody = await Connection.open(RedisConfig(url=own_valkey.url, timeout=120.0))
    async with Load(own_system, every=0.04) as load:
        for _ in range(flushes):
            assert await somebody.execute("SCRIPT", "FLUSH") == b"OK"
            await asyncio.sleep(0.03)  # the pace of the flushes
        slow = asyncio.create_task(somebody.execute("EVAL", KEEP_BUSY, 0, busy_for))
        await wait_until(lambda: own_valkey.command("PING").startswith(b"-BUSY"), message="BUSY")
        assert await slow == b"done"
        await load.accepts(10)
    await somebody.close()
    after = await load.settle()
    fault(
        f"{flushes} x SCRIPT FLUSH, a slow script: BUSY for {busy_for:g} s (lease 3 s)",
        accepted=after.accepted, refused=len(load.refused), lost=len(after.lost), retries=after.retries,
        reclaimed=after.reclaimed, repeated_steps=after.repeated.total(),
        of_these_finished_before=after.repeated_after_their_end,
    )  # fmt: skip
    assert not after.lost
    assert after.completed == after.existing
    assert after.retries == after.reclaimed == after.repeated_after_their_end == 0
