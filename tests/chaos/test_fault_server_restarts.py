"""The server ends, comes back, or is away for a while, under load.

Real: supervisor, worker processes, client, a Valkey of the test's own with its append-only log, signals. Scripted: the
model. A power cut is played: the log is cut to what it was a second before the server was killed.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.chaos.figures import LONG, fault, long_or_short
from tests.chaos.load import Load
from tests.chaos.system import System
from tests.valkey import ValkeyServer

AOF = {"appendonly": "yes"}


async def test_with_everysec_only_a_power_cut_costs_what_was_accepted_last(
    own_valkey: ValkeyServer, own_system: System
) -> None:
    """What a killed server has written is the kernel's, which is alive. With the machine, the last second may be gone.

    What is lost then was never there, as far as the server knows: the processes find out, run by run, and what it still
    has goes on from where that was.
    """
    kills, cuts = long_or_short((5, 10), (1, 1))
    own_valkey.start(**AOF, appendfsync="everysec")
    own_system.configure(heartbeat=0.4, missed=12, batch_size=20)  # the lease outlives the cut
    await own_system.start()
    forgettable: set[str] = set()
    async with Load(own_system, every=0.03) as load:
        for _ in range(kills):
            await load.accepts(20)
            own_valkey.stop()
            own_valkey.start(**AOF, appendfsync="everysec")
        for _ in range(cuts):
            await load.accepts(20)
            before, on_disk = set(load.accepted_at), own_valkey.written()
            await asyncio.sleep(1.0)  # what the disk is behind
            own_valkey.lose_power(on_disk)
            forgettable |= load.issued.keys() - before
            own_valkey.start(**AOF, appendfsync="everysec")
        await load.accepts(5)
    after = await load.settle()
    fault(
        f"AOF everysec: {kills} x SIGKILL of the server, {cuts} x power cut with the disk 1 s behind",
        accepted=after.accepted, lost_of_the_last_second=len(after.lost),
        lost_otherwise=len({*after.lost} - forgettable), ended=after.existing,
        completed_twice=after.completed - after.existing, retries=after.retries, reclaimed=after.reclaimed,
        repeated_steps=after.repeated.total(),
    )  # fmt: skip
    assert after.lost and set(after.lost) <= forgettable
    assert after.completed == after.existing
    assert after.retries == 0


async def test_nothing_is_lost_or_done_twice_because_the_server_is_away(
    own_valkey: ValkeyServer, own_system: System
) -> None:
    """Killed and started again, time and again; frozen, and shut down, for longer than every lease, and in the long run
    for longer than commands are tried again.
    """
    restart = partial(own_valkey.start, **AOF, appendfsync="always")
    restarts, away = long_or_short((10, 30.0), (2, 3.3))
    absences: list[tuple[str, Callable[[], Any], float, Callable[[], Any]]] = [
        *[("killed", own_valkey.stop, 0.2, restart)] * restarts,
        ("frozen", own_valkey.freeze, away, own_valkey.thaw),
        ("down", own_valkey.shut_down, away, restart),
    ]
    restart()
    own_system.configure(heartbeat=1.5, batch_size=20)
    await own_system.start()
    back_at: dict[str, list[float]] = defaultdict(list)
    async with Load(own_system, every=0.08, model_seconds=0.2, tool_seconds=0.2) as load:
        for how, leave, seconds, come_back in absences:
            await load.accepts(10)
            unfinished = {task_id for task_id, status in (await load.statuses()).items() if status != "completed"}
            leave()
            await asyncio.sleep(seconds)
            come_back()
            back_at[how].append(time.time())
            await load.completed(unfinished)
    after = await load.settle()
    for how, moments in back_at.items():
        goes_on = [seconds for moment in moments for seconds in seconds_until_each_goes_on(own_system, moment)]
        fault(
            f"server {how}, AOF always, {f'{restarts} times' if how == 'killed' else f'for {away:g} s'} (lease 3 s)",
            tasks_held_up=len(goes_on), seconds_until_they_go_on=f"{min(goes_on):.2f} to {max(goes_on):.2f}",
        )  # fmt: skip
    fault(
        "server killed, frozen, down: all of that",
        accepted=after.accepted, refused=len(load.refused), lost=len(after.lost),
        completed_twice=after.completed - after.existing, retries=after.retries, reclaimed=after.reclaimed,
        repeated_steps=after.repeated.total(), of_these_finished_before=after.repeated_after_their_end,
    )  # fmt: skip
    assert not after.lost
    assert after.completed == after.existing
    assert after.retries == after.reclaimed == after.repeated_after_their_end == 0
    if not LONG:  # no command ran out of time: what was being executed went on
        assert not after.repeated and not load.refused


def seconds_until_each_goes_on(system: System, moment: float) -> list[float]:
    """For each task that was begun before `moment`, and not over then."""
    begun: set[str] = set()
    goes_on: dict[str, float] = {}
    for line in system.witness():
        if line["at"] < moment:
            begun.add(line["task"])
        elif line["task"] in begun:
            goes_on.setdefault(line["task"], line["at"] - moment)
    return list(goes_on.values())
