"""Many runs at once, their steps as long as events wait for company: each one's events stay in order, each once.

Worker and server are real, in this process and beside it; the model plays a script.
"""

import asyncio
import gc
import random
from typing import Any

from factorial import Agent
from factorial.actors.outbox import LINGER
from factorial.testing import ScriptedModel, call, calls, say
from tests.harness import System, quick
from tests.support import wait_until

TURN_WITH_TOOLS = [
    "run_turn_started", "completion_started", "completion_completed", "tool_action_started", "tool_action_started",
    "tool_action_completed", "tool_action_completed", "run_turn_completed",
]  # fmt: skip
LAST_TURN = ["run_turn_started", "completion_started", "completion_completed", "run_turn_completed"]


async def test_events_stay_in_order_whatever_rides_with_what(system: System) -> None:
    async def wait_about(n: int) -> str:
        """Take about as long as an event waits."""
        await asyncio.sleep(LINGER * random.uniform(0.8, 1.2))
        return f"waited {n}"

    both = calls(call("wait_about", n=1), call("wait_about", n=2))
    model = ScriptedModel([both, both, both, say("done")], delay=LINGER * 0.97)
    agent = Agent(name="orderly", tools=[wait_about], model=model)
    tasks = [await system.submit(agent) for _ in range(150)]
    await system.start(agent, quick(batch_size=150))
    for task in tasks:
        data = await system.ended(task, timeout=30)
        assert (data["status"], data["pickups"], data["error"]) == ("completed", 1, None)
        assert [m.get("tool_call_id") for m in data["payload"]["messages"] if m["role"] == "tool"] == [
            f"call_{turn}_{number}" for turn in (0, 1, 2) for number in (0, 1)
        ]
    told: dict[str, list[str]] = {task: [] for task in tasks}
    for event in await system.events():
        if event["event_type"].startswith("progress_update_"):
            told[event["task_id"]].append(event["event_type"].removeprefix("progress_update_"))
    for types in told.values():
        assert types == [*TURN_WITH_TOOLS * 3, *LAST_TURN]


async def test_runs_that_have_ended_are_freed_without_the_garbage_collector(system: System) -> None:
    """A worker tells the collector to look seldom, and a conversation may be large. (The event loop keeps a timer that
    was cancelled for a while, and with it what is left of an execution, which is little.)
    """
    agent = Agent(name="tidy", tools=[], model=ScriptedModel([say("done")]))
    await system.start(agent, quick(batch_size=50))
    await system.ended(await system.submit(agent))
    gc.collect()
    before = len(_of_runs())
    gc.disable()
    try:
        for task in [await system.submit(agent) for _ in range(50)]:
            await system.ended(task)
        await wait_until(lambda: len(_of_runs()) <= before, message="all runs to be freed")
    finally:
        gc.enable()


def _of_runs() -> list[Any]:
    return [thing for thing in gc.get_objects() if type(thing).__name__ in ("RunState", "ContextSnapshot")]
