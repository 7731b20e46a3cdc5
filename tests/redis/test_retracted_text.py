"""What a page shows of a streamed answer when attempts at it break. Real: actors, mailbox, Valkey. Fake: the lifeline,
and the model, which is scripted."""

import asyncio
from typing import Any

from factorial import Agent, AgentContext
from factorial.errors import InvalidLLMResponseError
from factorial.mailbox.operations.lease import Cause
from factorial.testing import ScriptedModel, say
from tests.harness import System
from tests.support import wait_until

Updates = list[dict[str, Any]]


def shown(heard: Updates) -> str:
    """The text that a page shows that follows the owner's events."""
    text = ""
    for event in heard:
        if event["event_type"] == "completion_retracted":
            text = ""
        elif event["event_type"] == "progress_update_completion_chunk":
            text += event["data"]["choices"][0]["delta"].get("content") or ""
    return text


def attempts(heard: Updates) -> list[tuple[int, int]]:
    """The attempt and the pickups of each chunk, each pair once."""
    pairs = [
        (event["metadata"]["attempt"], event["metadata"]["pickups"])
        for event in heard
        if event["event_type"] == "progress_update_completion_chunk"
    ]
    return list(dict.fromkeys(pairs))


class Follower:
    """A page that is connected before anything happens, until the run is over."""

    def __init__(self, system: System) -> None:
        self.heard: Updates = []
        self.over = asyncio.create_task(system.updates(self._is_over))
        self._system = system

    def _is_over(self, heard: Updates) -> bool:
        self.heard = heard
        return bool(heard[-1]["event_type"] == "run_completed")

    async def connect(self) -> None:
        """Wait for the subscription."""
        channel = self._system.orchestrator.get_updates_channel("owner")

        async def is_connected() -> bool:
            return bool((await self._system.execute("PUBSUB", "NUMSUB", channel))[1])

        await wait_until(is_connected)


async def test_the_text_of_an_answer_that_is_rejected_is_withdrawn(system: System) -> None:
    class Choosy(Agent):
        rejected = 0

        def validate_completion(self, agent_ctx: AgentContext, response: Any) -> None:
            if not self.rejected:
                self.rejected += 1
                raise InvalidLLMResponseError("not that")

    agent = Choosy(name="choosy", stream=True, model=ScriptedModel(lambda messages: say("one two")))
    page = Follower(system)
    await page.connect()
    await system.start(agent)
    task_id = await system.submit(agent)
    heard = await page.over
    assert (shown(heard), attempts(heard)) == ("one two", [(1, 1), (2, 2)])
    [retracted] = [event for event in heard if event["event_type"] == "completion_retracted"]
    assert (retracted["turn"], retracted["data"]) == (0, {"attempt": 2, "pickups": 2})
    assert retracted == await system.event(task_id, "completion_retracted")  # it is stored


async def test_the_text_of_a_process_that_died_in_the_middle_is_withdrawn(system: System) -> None:
    agent = Agent(name="talking", stream=True, model=ScriptedModel([say("one two three four")], delay=3.0))
    page = Follower(system)
    await page.connect()
    victim = await system.start(agent)
    await system.submit(agent)
    await wait_until(lambda: "one" in shown(page.heard))
    await victim.kill()
    agent.model = ScriptedModel([say("five six")])
    await system.start(agent)
    await (await system.mailbox()).reclaim_process(victim.name, Cause.CRASHED)
    heard = await page.over
    assert (shown(heard), attempts(heard)) == ("five six", [(1, 1), (1, 2)])


async def test_nothing_is_withdrawn_of_an_answer_that_was_finished(system: System) -> None:
    agent = Agent(name="talking", stream=True, model=ScriptedModel([say("one two")]))
    page = Follower(system)
    await page.connect()
    await system.start(agent)
    task_id = await system.submit(agent)
    assert shown(await page.over) == "one two"
    assert "completion_retracted" not in await system.types(task_id)
