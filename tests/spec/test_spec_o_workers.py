"""What the settings of the workers and of maintenance mean (O04, O05).

How much is done at once is what the provider sees. Real: Valkey, HTTP, the openai client, the actors. Fake: the
language model, and the lifeline of a worker process.
"""

import asyncio
import time
from typing import Any

import pytest

from factorial import Agent, MaintenanceWorkerConfig, TaskTTLConfig, gpt_41
from factorial.testing import call
from tests.harness import System, quick
from tests.spec.provider import Provider
from tests.support import wait_until


@pytest.mark.parametrize(("workers", "batch_size"), [(1, 1), (3, 1), (1, 4), (2, 3)])
async def test_spec_O04_workers_times_batch_size_tasks_are_executed_at_once(
    system: System, provider: Provider, workers: int, batch_size: int
) -> None:
    """No more and no fewer; a slot that frees is filled at once."""
    slots = workers * batch_size
    agent = Agent(name="worker", model=gpt_41)
    task_ids = [await system.submit(agent, str(number)) for number in range(slots + 3)]
    process = await system.start(agent, quick(workers=workers, batch_size=batch_size))
    under_way = [await provider.called() for _ in range(slots)]
    assert (provider.at_once, len(process.holds)) == (slots, slots)
    assert [len(worker.hosts) for worker in process.runner._workers] == [batch_size] * workers
    for _ in range(3):
        under_way.pop(0).answer("done")
        under_way.append(await provider.called())
        assert len(process.holds) <= slots
    for request in under_way:
        request.answer("done")
    for task_id in task_ids:
        assert (await system.ended(task_id))["status"] == "completed"
    assert provider.most_at_once == slots
    assert len(provider.calls) == len(task_ids)


async def test_spec_O04_a_slow_task_does_not_hold_up_its_batch(system: System, provider: Provider) -> None:
    provider.replies = lambda messages: None if messages[-1]["content"] == "slow" else "done"
    agent = Agent(name="worker", model=gpt_41)
    await system.start(agent, quick(batch_size=3))
    slow = await system.submit(agent, "slow")
    held = await provider.called()
    for number in range(12):
        assert (await system.ended(await system.submit(agent, str(number))))["status"] == "completed"
    assert await system.orchestrator.get_task_status(slow) == "processing"
    held.answer("done")
    await system.ended(slow)


async def test_spec_O04_a_process_beats_once_per_heartbeat_interval(system: System, provider: Provider) -> None:
    """Its lease is renewed while it works on a long call; it lasts as long as `missed_heartbeats` of them."""
    agent = Agent(name="worker", model=gpt_41)
    process = await system.start(agent, quick(heartbeat_interval=0.4, missed_heartbeats=10))
    task_id = await system.submit(agent)
    under_way = await provider.called()
    lease = (await system.mailbox()).keys.lease(process.name)

    async def left() -> int:
        return int(await system.execute("PTTL", lease))

    begun, beats, before = time.monotonic(), 0, await left()
    while beats < 4:
        now = await left()
        assert 0 < now <= 4000
        beats += now > before
        before = now
        await asyncio.sleep(0.01)
    assert time.monotonic() - begun >= 3 * 0.4 * 0.75
    under_way.answer("done")
    data = await system.ended(task_id)
    assert (data["status"], data["pickups"]) == ("completed", 1)


async def test_spec_O05_what_a_crashed_worker_held_is_done_by_another(system: System, provider: Provider) -> None:
    """Its finished turn is kept, and the call that was under way is made again. No retry is spent."""

    async def look() -> str:
        """Look."""
        return "seen"

    agent = Agent(name="worker", model=gpt_41, tools=[look])
    crashing = await system.start(agent, quick(heartbeat_interval=0.2, missed_heartbeats=2))
    task_id = await system.submit(agent, "hello")
    (await provider.called()).answer(call("look"))
    lost = await provider.called()
    other = await system.start(agent, quick(heartbeat_interval=0.2))
    await crashing.kill()
    again = await provider.called()
    assert again.messages == lost.messages
    assert other.holds == {task_id}
    again.answer("done")
    data = await system.ended(task_id)
    assert (data["payload"]["output"], data["pickups"], data["retries"]) == ("done", 2, 0)
    types = await system.types(task_id)
    assert types.count("task_reclaimed") == types.count("run_started") == 1


STATUSES = ("completed", "failed", "cancelled")


@pytest.mark.parametrize("short", STATUSES)
async def test_spec_O05_an_ended_task_is_removed_when_its_own_time_is_over(
    system: System, provider: Provider, short: str
) -> None:
    """The other two have hours left, and stay."""
    ttl: dict[str, Any] = {f"{status}_ttl": 1.0 if status == short else 3600.0 for status in STATUSES}
    agent = Agent(name="worker", model=gpt_41)
    maintenance = MaintenanceWorkerConfig(interval=0.05, workers=2, task_ttl=TaskTTLConfig(**ttl))
    await system.start(agent, quick(), maintenance)
    ids = {status: await system.submit(agent, status) for status in STATUSES}
    for _ in STATUSES:
        request = await provider.called()
        match request.messages[-1]["content"]:
            case "completed":
                request.answer("done")
            case "failed":
                request.refuse(400)
            case _:
                await system.orchestrator.cancel_task(ids["cancelled"])
    before = time.monotonic()
    ended: dict[str, float] = {}

    async def is_gone() -> bool:
        for status, task_id in ids.items():
            data = await system.orchestrator.get_task_data(task_id)
            if data and data["status"] == status:
                ended.setdefault(status, time.monotonic())
        return len(ended) == 3 and await system.orchestrator.get_task_data(ids[short]) is None

    await wait_until(is_gone, 30, f"the {short} task is removed")
    assert time.monotonic() - before >= 0.95
    for status, task_id in ids.items():
        left = await system.execute("KEYS", f"{(await system.mailbox()).keys.prefix}*:{task_id}")
        if status == short:
            assert left == []
        else:
            assert await system.orchestrator.get_task_status(task_id) == status


async def test_spec_O05_many_expired_tasks_are_removed(system: System, provider: Provider) -> None:
    """More than one call of a script removes; a queued task never expires."""
    provider.replies = ["done"]
    agent, absent = Agent(name="worker", model=gpt_41), Agent(name="absent", model=gpt_41)
    ttl = TaskTTLConfig(completed_ttl=0.2)
    await system.start(agent, quick(), MaintenanceWorkerConfig(interval=0.05, task_ttl=ttl, max_cleanup_batch=5))
    waiting = await system.submit(absent)
    task_ids = [await system.submit(agent) for _ in range(30)]

    async def are_gone() -> bool:
        return all([await system.orchestrator.get_task_data(task_id) is None for task_id in task_ids])

    await wait_until(are_gone, 30)
    assert await system.orchestrator.get_task_status(waiting) == "queued"
    assert len(provider.calls) == 30
