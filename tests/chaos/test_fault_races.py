"""Cancel against complete, and steer against complete: thousands of times, so close that either may win.

Real: actors, mailbox, Valkey. Fake: the lifeline, and the model, which is scripted.
"""

import asyncio
import random
from collections import Counter, defaultdict
from typing import Any

from factorial import Agent, AgentContext
from factorial.errors import InactiveTaskError
from factorial.testing import ScriptedModel, say
from tests.chaos.figures import fault, long_or_short
from tests.harness import System, quick

RACES = long_or_short(5000, 200)
AT_ONCE = 10
"""Races at the same time, in two processes."""
OWNERS = 100
"""So that each one's stream keeps all its events."""


class Attentive(Agent):
    """Remembers what its model was shown, by the task's query."""

    def __init__(self) -> None:
        super().__init__(name="a", model=ScriptedModel(lambda messages: say(f"answer {len(messages)}")))
        self.shown: dict[str, set[str]] = defaultdict(set)

    async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
        self.shown[agent_ctx.query].update(message["content"] for message in messages)
        return await super().completion(agent_ctx, messages)


class Course:
    """Says when to come in: about when the task ends. It learns from each race, so that neither side wins them all."""

    def __init__(self) -> None:
        self.lasts = 0.01

    def moment(self) -> float:
        """Seconds after the enqueue."""
        return self.lasts * random.uniform(0.5, 1.5)

    def learn(self, was_accepted: bool) -> None:
        """A task that was still there lasts longer than that, one that was gone less."""
        self.lasts *= 1.05 if was_accepted else 0.95


async def races(system: System, act: Any) -> tuple[dict[str, bool], Attentive]:
    """Enqueue tasks, and act on each at about the moment when it completes. Tells which of the acts were accepted."""
    agent, course = Attentive(), Course()
    for _ in range(2):
        await system.start(agent, quick(workers=2))
    await system.ended(await system.submit(agent, "warm"))
    accepted: dict[str, bool] = {}
    numbers = iter(range(RACES))

    async def lane() -> None:
        for number in numbers:
            task_id = await system.submit(agent, f"race {number}", owner_id=f"owner {number % OWNERS}")
            await asyncio.sleep(course.moment())
            try:
                await act(task_id)
                accepted[task_id] = True
            except InactiveTaskError as late:
                assert late.status == "completed"
                accepted[task_id] = False
            course.learn(accepted[task_id])

    await asyncio.gather(*(lane() for _ in range(AT_ONCE)))
    return accepted, agent


async def all_runs(system: System, accepted: dict[str, bool]) -> dict[str, dict[str, Any]]:
    """What is stored of all of them, when they have ended."""
    return {task_id: await system.ended(task_id, 60) for task_id in accepted}


async def test_cancel_against_complete(local: System) -> None:
    accepted, _ = await races(local, local.orchestrator.cancel_task)
    runs = await all_runs(local, accepted)
    types: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(OWNERS):
        for event in await local.events(owner_id=f"owner {number}"):
            types[event["task_id"]][event["event_type"]] += 1
    for task_id, was_accepted in accepted.items():
        assert runs[task_id]["status"] == ("cancelled" if was_accepted else "completed")
        assert types[task_id]["run_cancelled"] == was_accepted
        assert types[task_id]["run_completed"] == types[task_id]["agent_output"] == (not was_accepted)
    won = sum(accepted.values())
    assert RACES * 0.1 < won < RACES * 0.9
    fault("cancel against complete", races=RACES, cancelled=won, completed=RACES - won)


async def test_steer_against_complete(local: System) -> None:
    async def steer(task_id: str) -> None:
        await local.orchestrator.steer_task(task_id, [{"role": "user", "content": f"steer {task_id}"}])

    accepted, agent = await races(local, steer)
    runs = await all_runs(local, accepted)
    for task_id, was_accepted in accepted.items():
        payload = runs[task_id]["payload"]
        contents = [message["content"] for message in payload["messages"]]
        assert runs[task_id]["status"] == "completed"
        assert contents.count(f"steer {task_id}") == was_accepted
        assert (f"steer {task_id}" in agent.shown[payload["query"]]) == was_accepted
        assert contents[-1] == payload["output"] == f"answer {len(contents) - 1}"
    won = sum(accepted.values())
    assert RACES * 0.1 < won < RACES * 0.9
    fault(
        "steer against complete", races=RACES, accepted_and_shown_to_the_model=won, refused=RACES - won,
        another_turn_for_it=sum(len(run["payload"]["messages"]) == 4 for run in runs.values()),
    )  # fmt: skip
