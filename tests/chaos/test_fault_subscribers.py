"""Subscribers that come before, during and after the work, that are cut off and come back, while processes are killed:
each hears each event once, in order.

Real: worker processes (see nursery.py), Valkey, its connections, signals. Scripted: the model.
"""

import asyncio
import os
import random
import signal
from contextlib import aclosing, suppress

from factorial import Orchestrator
from tests.chaos.figures import fault, long_or_short
from tests.chaos.system import OWNER, System
from tests.redis.doctor import assert_invariants
from tests.support import wait_until

TASKS = long_or_short(300, 24)
SUBSCRIBERS = long_or_short(12, 4)
KILLS, PAUSE = long_or_short(60, 6), 0.25


class Subscriber:
    """Hears the owner's events from behind `after` on: whenever it comes back, after the last one that it has heard."""

    def __init__(self, orchestrator: Orchestrator, after: str = "0") -> None:
        self.orchestrator = orchestrator
        self.after = after
        self.heard: list[str] = []
        self.comes = 0

    async def listen(self, last: str = "") -> None:
        """Listen until the event with the id `last`."""
        self.comes += 1
        if last and last == self.after:
            return
        async with aclosing(self.orchestrator.subscribe_to_updates(OWNER, after=self.after)) as updates:
            async for update in updates:
                assert update["event_type"] != "subscription_gap"
                self.heard.append(update["id"])
                self.after = update["id"]
                if update["id"] == last:
                    return

    async def come_and_go(self) -> None:
        """Listen for a moment, time and again."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(0.05, 0.8)):
                    await self.listen()


async def kill_and_cut(system: System, orchestrator: Orchestrator) -> int:
    """Kill one worker process after the other, and each time every connection that waits for events. Tells how many
    connections those were."""
    cut = 0
    commands = (await orchestrator._namespace()).connection
    for _ in range(KILLS):
        await asyncio.sleep(PAUSE)
        worker = random.choice([one.pid for one in system.workers()])
        os.kill(worker, signal.SIGKILL)
        cut += await commands.execute("CLIENT", "KILL", "TYPE", "pubsub")
    return cut


async def test_each_subscriber_hears_each_event_once_and_in_order(system: System) -> None:
    # Some are killed before they have told of their predecessor's death: its lease tells of that.
    system.configure(processes=3, workers=2, batch_size=10, heartbeat=0.5)
    await system.start("-m", "tests.chaos.nursery", str(system.config))
    orchestrator = system.orchestrator
    steady = Subscriber(orchestrator, "$")  # comes before everything, and stays
    restless = [Subscriber(orchestrator) for _ in range(SUBSCRIBERS)]
    listening = [asyncio.create_task(each.come_and_go()) for each in restless[::2]]  # these come before the work
    staying = asyncio.create_task(steady.listen())
    await wait_until(lambda: hears(system, orchestrator), message="somebody to listen")
    tasks = [await system.enqueue(turns=2, model_seconds=0.1, tool_seconds=0.1) for _ in range(TASKS // 2)]
    disturbing = asyncio.create_task(kill_and_cut(system, orchestrator))
    tasks += [await system.enqueue(turns=2, model_seconds=0.1, tool_seconds=0.1) for _ in range(TASKS // 2)]
    listening += [asyncio.create_task(each.come_and_go()) for each in restless[1::2]]  # and these while it is done
    cut = await disturbing
    data = await system.all_end(tasks, 120)
    mailbox = await orchestrator._namespace()
    stored = [id.decode() for id, _ in await mailbox.connection.execute("XRANGE", mailbox.keys.events(OWNER), "-", "+")]
    await wait_until(lambda: steady.after == stored[-1], message="the last event")
    for task in (staying, *listening):
        task.cancel()
    await asyncio.gather(staying, *listening, return_exceptions=True)
    late = Subscriber(orchestrator)
    for subscriber in (late, *restless):
        async with asyncio.timeout(30):
            await subscriber.listen(stored[-1])
    heard = [each.heard for each in (steady, late, *restless)]
    missed = sum(len(set(stored) - set(events)) for events in heard)
    twice = sum(len(events) - len(set(events)) for events in heard)
    assert all(events == stored for events in heard)
    assert {each["status"] for each in data} == {"completed"}
    assert cut > 0 and sum(each["pickups"] for each in data) > TASKS
    await assert_invariants(mailbox.connection, system.namespace)
    fault(
        "subscribers cut off and coming back, under kills", events=len(stored), subscribers=SUBSCRIBERS + 2,
        reconnects=sum(each.comes - 1 for each in restless), connections_cut=cut, kills=KILLS,
        missed=missed, heard_twice=twice,
    )  # fmt: skip
    assert await system.stop() == 0


async def hears(system: System, orchestrator: Orchestrator) -> bool:
    mailbox = await orchestrator._namespace()
    return bool(await mailbox.connection.execute("PUBSUB", "CHANNELS", mailbox.keys.channel(OWNER)))
