"""Steering: messages reach the task before its next model call, in order, and none that was accepted is dropped.

Real: actors, mailbox, Valkey. Fake: the lifeline, and the model, which is scripted.
"""

import asyncio
from typing import Any

import pytest

from factorial import Agent, AgentContext, RetryableError, TurnCompletion
from factorial.errors import ConfigError, InactiveTaskError, TaskNotFoundError
from factorial.testing import ScriptedModel, call, say
from tests.harness import System, quick, texts
from tests.support import PATIENCE


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


class Gated(Agent):
    """Each model call waits for a pass, and the messages that each one saw are noted."""

    def __init__(self, *replies: Any, **options: Any) -> None:
        super().__init__(name="gated", model=ScriptedModel(list(replies)), **options)
        self.saw: list[list[str]] = []
        self.begun = asyncio.Semaphore(0)
        self.passes = asyncio.Semaphore(0)

    async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
        self.saw.append(texts(messages))
        self.begun.release()
        await self.passes.acquire()
        return await super().completion(agent_ctx, messages)

    async def call_begins(self) -> None:
        await asyncio.wait_for(self.begun.acquire(), PATIENCE)


async def test_a_queued_task_reads_it_before_its_first_call(system: System) -> None:
    agent = Gated("done")
    agent.passes.release()
    task_id = await system.submit(agent, "hello")
    await system.orchestrator.steer_task(task_id, [user("be brief"), user("be kind")])
    await system.start(agent)
    data = await system.ended(task_id)
    assert agent.saw == [["user: hello", "user: be brief", "user: be kind"]]
    assert texts(data["payload"]["messages"])[-1] == "assistant: done"
    applied = await system.event(task_id, "run_steering_applied")
    assert applied["data"] == {"messages": 2}


async def test_a_task_in_a_model_call_reads_it_before_the_next(system: System) -> None:
    def tool() -> str:
        """Work."""
        return "result"

    agent = Gated(call("tool"), say("done"), tools=[tool])
    await system.start(agent)
    task_id = await system.submit(agent, "hello")
    await agent.call_begins()
    await system.orchestrator.steer_task(task_id, [user("mind the gap")])
    for _ in range(2):
        agent.passes.release()
    data = await system.ended(task_id)
    assert data["payload"]["output"] == "done"
    assert agent.saw[1] == ["user: hello", "assistant: None", "tool: result", "user: mind the gap"]


async def test_steering_during_the_last_call_leads_to_another_turn(system: System) -> None:
    """And the first answer stands in the conversation, but is not the output."""
    agent = Gated("first answer", "second answer")
    await system.start(agent)
    task_id = await system.submit(agent, "hello")
    await agent.call_begins()
    await system.orchestrator.steer_task(task_id, [user("not so fast")])
    agent.passes.release()
    await agent.call_begins()
    assert (await system.data(task_id))["payload"]["output"] is None
    agent.passes.release()
    data = await system.ended(task_id)
    assert data["payload"]["output"] == "second answer"
    assert agent.saw[1] == ["user: hello", "assistant: first answer", "user: not so fast"]
    types = await system.types(task_id)
    assert types.count("agent_output") == types.count("run_completed") == 1
    assert types.index("run_steering_applied") < types.index("agent_output")


async def test_several_steers_arrive_in_the_order_in_which_they_were_accepted(system: System) -> None:
    agent = Gated("one", "two", "three")
    await system.start(agent)
    task_id = await system.submit(agent, "hello")
    await agent.call_begins()
    for number in range(20):
        await system.orchestrator.steer_task(task_id, [user(f"{number}a"), user(f"{number}b")])
    agent.passes.release()
    await agent.call_begins()
    await system.orchestrator.steer_task(task_id, [user("last")])
    for _ in range(2):
        agent.passes.release()
    data = await system.ended(task_id)
    expected = [f"user: {number}{letter}" for number in range(20) for letter in "ab"]
    assert agent.saw[1][2:] == expected
    assert agent.saw[2][2:] == [*expected, "assistant: two", "user: last"]
    assert data["payload"]["output"] == "three"
    assert data["payload"]["turn"] == 3


async def test_a_task_in_backoff_reads_it_when_it_is_tried_again(system: System) -> None:
    seen: list[list[str]] = []

    class Failing(Agent):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            seen.append(texts(messages))
            if len(seen) == 1:
                raise RetryableError("again")
            return await super().completion(agent_ctx, messages)

    agent = Failing(name="failing", model=ScriptedModel(["done"]))
    await system.start(agent, quick(retry_delay=0.4, max_retry_delay=0.4))
    task_id = await system.submit(agent, "hello")
    await system.reaches(task_id, "backoff")
    await system.orchestrator.steer_task(task_id, [user("try harder")])
    await system.ended(task_id)
    assert seen == [["user: hello"], ["user: hello", "user: try harder"]]


async def test_steering_that_a_failed_turn_had_read_is_there_once_in_the_next_try(system: System) -> None:
    seen: list[list[str]] = []

    class Failing(Agent):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            seen.append(texts(messages))
            if len(seen) < 3:
                raise RetryableError("again")
            return await super().completion(agent_ctx, messages)

    agent = Failing(name="failing", model=ScriptedModel(["done"]))
    task_id = await system.submit(agent, "hello")
    await system.orchestrator.steer_task(task_id, [user("be brief")])
    await system.start(agent)
    data = await system.ended(task_id)
    assert seen == [["user: hello", "user: be brief"]] * 3
    assert texts(data["payload"]["messages"]) == ["user: hello", "user: be brief", "assistant: done"]


async def test_steering_after_a_journaled_answer_is_shown_to_the_model_all_the_same(system: System) -> None:
    """The turn failed after its model call. What comes before the next try was not part of that call: the recorded
    answer does not know of it, so there has to be another turn."""
    asked: list[list[str]] = []

    class Picky(Agent):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            asked.append(texts(messages))
            return await super().completion(agent_ctx, messages)

        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            finished = await super().run_turn(agent_ctx)
            execution = self.get_execution_context()
            if execution.pickups == 1:
                raise RetryableError("once more")
            return finished

    agent = Picky(name="picky", model=ScriptedModel(["first", "second"]))
    task_id = await system.submit(agent, "hello")
    await system.orchestrator.steer_task(task_id, [user("early")])
    await system.start(agent, quick(retry_delay=300, max_retry_delay=300))
    await system.reaches(task_id, "backoff")
    await system.orchestrator.steer_task(task_id, [user("late")])
    await system.make_due(task_id)
    data = await system.ended(task_id)
    late_by_one = ["user: hello", "user: early", "assistant: first", "user: late"]
    assert asked[-1] == late_by_one
    assert len(asked) == 2
    assert texts(data["payload"]["messages"]) == [*late_by_one, "assistant: second"]


async def test_an_ended_task_takes_no_steering_and_tells_its_owner(system: System) -> None:
    agent = Agent(name="a", model=ScriptedModel(["done"]))
    await system.start(agent)
    task_id = await system.submit(agent)
    await system.ended(task_id)
    with pytest.raises(InactiveTaskError, match=r"has ended \(completed\)"):
        await system.orchestrator.steer_task(task_id, [user("too late")])
    failed = await system.event(task_id, "run_steering_failed")
    assert failed["error"] == f"task '{task_id}' has ended (completed): it cannot be steered or cancelled any more"
    assert failed["agent_name"] == "a"


@pytest.mark.parametrize(
    "messages",
    [
        "be brief", None, {"role": "user", "content": "x"}, ["be brief"], [{"content": "x"}],
        [{"role": "boss", "content": "x"}], [{"role": "tool", "content": "x"}], [{"role": "user"}],
        [{"role": "user", "content": ""}],
    ],
)  # fmt: skip
async def test_malformed_steering_is_refused_and_tells_its_owner(system: System, messages: Any) -> None:
    agent = Agent(name="a", model=ScriptedModel(["done"]))
    task_id = await system.submit(agent)
    with pytest.raises(ConfigError, match="Invalid steering message format"):
        await system.orchestrator.steer_task(task_id, messages)
    failed = await system.event(task_id, "run_steering_failed")
    assert failed["error"].startswith("Invalid steering message format")
    mailbox = await system.mailbox()
    assert await mailbox.connection.execute("KEYS", mailbox.keys.prefix + "mail:*") == []


async def test_steering_a_task_that_is_not_there(system: System) -> None:
    with pytest.raises(TaskNotFoundError):
        await system.orchestrator.steer_task("unknown", [user("hello")])


async def test_a_run_that_is_cancelled_tells_of_the_steering_that_nobody_read(system: System) -> None:
    agent = Gated("done")
    await system.start(agent)
    task_id = await system.submit(agent)
    await agent.call_begins()
    await system.orchestrator.steer_task(task_id, [user("be brief")])
    await system.orchestrator.cancel_task(task_id)
    await system.ended(task_id)
    types = await system.types(task_id)
    assert types[-2:] == ["run_steering_failed", "run_cancelled"]
    error = (await system.event(task_id, "run_steering_failed"))["error"]
    assert error == "the run ended (cancelled) before the steering messages were read"


async def test_accepted_steering_is_applied_or_answered_however_close_the_end_is(system: System) -> None:
    agent = Agent(name="quick", model=ScriptedModel(lambda messages: say("done")))
    await system.start(agent, quick(workers=2, batch_size=50))
    accepted = 0
    for number in range(60):
        task_id = await system.submit(agent)
        await asyncio.sleep(number % 12 / 4000)
        try:
            await system.orchestrator.steer_task(task_id, [user("marked")])
        except InactiveTaskError:
            continue
        accepted += 1
        data = await system.ended(task_id)
        conversation = texts(data["payload"]["messages"])
        assert conversation.count("user: marked") == 1
        assert conversation[-1] == "assistant: done"
        assert (await system.types(task_id)).count("run_steering_applied") == 1
    assert accepted
