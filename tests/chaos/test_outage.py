"""The provider is away for a time: it answers 503, then 429 with a Retry-After, then nobody listens at its port.

`make test` has a short outage, with short pauses. `make outage` has one of ten minutes, with the default settings.

Real: supervisor, worker processes, Valkey, the openai client, an HTTP server. Fake: the language model behind it.
"""

import asyncio
import os
import time
from collections import Counter

from factorial import AgentContext, Task
from tests.chaos.figures import fault
from tests.chaos.outages import Away, looking
from tests.chaos.system import OWNER, System
from tests.redis.doctor import assert_invariants
from tests.support import wait_until

MINUTES = float(os.environ.get("FACTORIAL_OUTAGE_MINUTES", "0"))
TASKS = 200 if MINUTES else 20
SHORT = "retry_delay = 0.3, max_retry_delay = 1.0, "


async def test_an_outage_of_a_provider_fails_no_task_and_spends_no_retry(system: System) -> None:
    """One half of the tasks is in the middle of its work when it begins; the other is enqueued meanwhile."""
    seconds = 60 * MINUTES or 6.0
    system.configure(agent="outages:looking", workers=1, batch_size=5, worker="" if MINUTES else SHORT)
    provider = Away()
    provider.refusal = 503
    async with provider.running() as running:
        await system.start(OPENAI_BASE_URL=running.url, OPENAI_API_KEY="sk-test")
        tasks = await enqueue(system, TASKS // 2)
        await wait_until(lambda: provider.answered == TASKS // 2, message="all in the middle of their work")
        provider.refuses_all = True
        began = time.monotonic()
        tasks += await enqueue(system, TASKS - len(tasks))
        await asyncio.sleep(seconds / 3)
        provider.refusal = 429
        await asyncio.sleep(seconds / 3)
    # There are fewer slots than tasks: a task that waits holds none.
    await system.logs("is deferred", len(tasks))
    await asyncio.sleep(seconds - (time.monotonic() - began))
    provider.refusal = None
    async with provider.running(provider.port):
        lasted, returned = time.monotonic() - began, time.monotonic()
        data = await system.all_end(tasks, 120)
        took = time.monotonic() - returned
    events = [event["event_type"] for task in tasks for event in await system.events(task)]
    log = system.log.read_text()
    lines = Counter(task.id for task in tasks for line in log.splitlines() if task.id in line and "is deferred" in line)
    fault(
        f"the provider is away for {lasted:.0f} s: 503, 429, no connection",
        tasks=len(tasks), failed=sum(each["status"] != "completed" for each in data),
        retries=sum(each["retries"] for each in data), calls_in_vain=provider.refused.total(),
        log_lines_per_task=max(lines.values()), all_ended_after=f"{took:.1f} s",
    )  # fmt: skip
    assert min(provider.refused[503], provider.refused[429]) > 0
    assert {(each["status"], each["retries"], each["payload"]["output"]) for each in data} == {
        ("completed", 0, "It is blue.")
    }
    assert lines == Counter({task.id: 1 for task in tasks})
    assert events.count("task_deferred") == len(tasks)
    assert not {"task_failed", "task_retried", "run_failed"} & set(events)
    assert provider.answered == 2 * len(tasks)  # no answer was paid twice
    assert await system.stop() == 0
    mailbox = await system.orchestrator._namespace()
    await assert_invariants(mailbox.connection, system.namespace, quiet=True)


async def enqueue(system: System, count: int) -> list[Task[AgentContext]]:
    """So many tasks for the agent."""
    return [
        await system.orchestrator.enqueue_task(looking, owner_id=OWNER, payload=AgentContext(query="Which colour?"))
        for _ in range(count)
    ]
