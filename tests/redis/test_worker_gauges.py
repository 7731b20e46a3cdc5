"""What a worker process measures of itself for its supervisor.

Real: actors, mailbox, Valkey. Fake: the lifeline, and the model, which is scripted and waits.
"""

import asyncio
from typing import Any

from factorial import Agent, AgentContext
from factorial.testing import ScriptedModel
from tests.harness import System
from tests.support import wait_until


async def test_the_tasks_in_flight(system: System) -> None:
    gate = asyncio.Event()

    class Waits(Agent):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            await gate.wait()
            return await super().completion(agent_ctx, messages)

    agent = Waits(name="waits", model=ScriptedModel(["done", "done"]))
    process = await system.start(agent)
    tasks = process.lifeline.gauges["tasks"]
    assert tasks() == 0
    submitted = [await system.submit(agent) for _ in range(2)]
    await wait_until(lambda: tasks() == 2)
    gate.set()
    for task_id in submitted:
        await system.ended(task_id)
    await wait_until(lambda: tasks() == 0)
