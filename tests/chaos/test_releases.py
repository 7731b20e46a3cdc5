"""A release of the agents that cannot read what is in flight is deployed, and rolled back.

Real: supervisor, worker processes that import the agents anew, Valkey, signals. Scripted: the model.
"""

import re
import signal
from collections import Counter

from factorial import AgentContext, BaseAgent, Task
from factorial.testing import ScriptedModel
from tests.chaos.figures import fault
from tests.chaos.system import OWNER, ROOT, System
from tests.redis.doctor import assert_invariants
from tests.support import wait_until

RELEASE = '''
import asyncio
from pathlib import Path
from factorial import AgentContext, BaseAgent
from factorial.testing import ScriptedModel, call, say

class Order(AgentContext):
    tenant: {type}
    looked: int = 0

async def look(agent_ctx: Order) -> str:
    """Look."""
    agent_ctx.looked += 1
    with Path("looked").open("a") as file:
        file.write(f"{{agent_ctx.query}}\\n")
    await asyncio.sleep(0.3)
    return "seen"

def reply(messages):
    return say("done") if Path("enough").exists() else call("look")

agent = BaseAgent(name="orders", context_class=Order, tools=[look], model=ScriptedModel(reply))
'''
COUNT = 40


class Order(AgentContext):
    """As the client has it."""

    tenant: str = "acme"
    looked: int = 0


orders = BaseAgent(name="orders", context_class=Order, model=ScriptedModel([]))


async def test_a_release_that_cannot_read_what_is_in_flight_and_back_fails_no_task(system: System) -> None:
    """Some tasks are in the middle of their work, others are enqueued while the release is there."""
    module = system.directory / "orders.py"
    system.configure(agent="x:x", workers=2, batch_size=5, worker="retry_delay = 0.3, max_retry_delay = 1.0, ")
    system.config.write_text(system.config.read_text().replace("tests.chaos.x:x", "orders:agent"))
    deploy_to = {release: RELEASE.format(type=release) for release in ("str", "int")}
    module.write_text(deploy_to["str"])
    await system.start(PYTHONPATH=f"{ROOT}:{system.directory}", PYTHONDONTWRITEBYTECODE="1")
    looked = system.directory / "looked"
    tasks = await enqueue(system, 0, COUNT // 2)
    await wait_until(looked.exists, message="the tasks under way")
    for reloads, release in enumerate(("int", "str"), 1):
        module.write_text(deploy_to[release])
        system.process.send_signal(signal.SIGHUP)
        await system.logs("system: reloaded: ", reloads)
        if release == "int":
            tasks += await enqueue(system, len(tasks), COUNT)
            await system.logs("is deferred", COUNT)
            _, status = await system.command("status")
    (system.directory / "enough").touch()
    data = await system.all_end(tasks)
    calls = Counter(looked.read_text().split())
    kept = Counter({each["payload"]["query"]: each["payload"]["looked"] for each in data})
    fault(
        "a release that cannot read what is in flight, and back",
        tasks=len(data), failed=sum(each["status"] != "completed" for each in data),
        retries=sum(each["retries"] for each in data), tools_repeated=(calls - kept).total(),
    )  # fmt: skip
    # Some of them may be tried again at this moment.
    assert re.search(r"! orders: \d+ deferred: the stored context does not fit Order: tenant: ", status), status
    assert {(each["status"], each["retries"]) for each in data} == {("completed", 0)}
    assert calls == kept
    assert len(calls) >= COUNT // 2
    assert await system.stop() == 0
    mailbox = await system.orchestrator._namespace()
    await assert_invariants(mailbox.connection, system.namespace, quiet=True)


async def enqueue(system: System, start: int, stop: int) -> list[Task[Order]]:
    """Tasks that are told apart by their query."""
    return [
        await system.orchestrator.enqueue_task(orders, owner_id=OWNER, payload=Order(query=str(number)))
        for number in range(start, stop)
    ]
