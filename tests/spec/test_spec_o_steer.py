"""Steering a run: accepted messages reach it before its next model call (O10, E08, O17).

The witness is the provider: what a model has read is what stands in the recorded requests. Real: Valkey, HTTP, the
openai client, the actors. Fake: the language model, and the lifeline of a worker process.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from factorial import Agent, AgentContext, BaseAgent, TurnCompletion, gpt_41
from factorial.errors import (
    ConfigError,
    ContextError,
    InactiveTaskError,
    InvalidTaskIdError,
    MailboxFullError,
    TaskNotFoundError,
)
from factorial.testing import call
from factorial.utils import BaseModel
from tests.harness import System, quick
from tests.spec.provider import Provider, texts
from tests.spec.situations import SITUATIONS, Situation, Stage, ended_as


class Answer(BaseModel):
    text: str


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda each: str(each.__name__))
async def test_spec_O10_the_next_model_call_reads_it_whatever_the_run_is_doing(
    system: System, provider: Provider, situation: Callable[[Stage], Awaitable[Situation]]
) -> None:
    """All that was steered, in its order, behind what was there and behind the results of the tools."""
    run = await situation(Stage(system, provider))
    assert await system.orchestrator.get_task_status(run.task_id) == run.status
    await system.orchestrator.steer_task(run.task_id, [user("first"), user("second")])
    await system.orchestrator.steer_task(run.task_id, [{"role": "system", "content": "third"}])
    assert await system.orchestrator.get_task_status(run.task_id) == run.status
    await run.go_on()
    request = await provider.called()
    read = texts(request.messages)
    if run.conversation[-1] == "tool: ...":
        assert read[len(run.conversation) - 1].startswith("tool: ")
        read[len(run.conversation) - 1] = "tool: ..."
    assert read == [*run.conversation, "user: first", "user: second", "system: third"]
    request.answer("well done")
    data = await system.ended(run.task_id, timeout=20)
    assert (data["status"], data["payload"]["output"]) == ("completed", "well done")
    conversation = texts(data["payload"]["messages"])
    assert conversation == [*texts(request.messages), "assistant: well done"]
    applied = [one for one in await system.events(run.task_id) if one["event_type"] == "run_steering_applied"]
    assert sum(event["data"]["messages"] for event in applied) == 3
    assert (await system.types(run.task_id)).count("agent_output") == 1


async def test_spec_O10_it_stays_in_the_conversation(system: System, provider: Provider) -> None:
    """Every later request holds it at its place."""
    stage = Stage(system, provider)
    stage.gate.set()
    await stage.start()
    task_id = await system.submit(stage.agent, "hello")
    steered: list[str] = []
    for turn in range(4):
        request = await provider.called()
        assert [text for text in texts(request.messages) if text.startswith("user: steer")] == steered
        await system.orchestrator.steer_task(task_id, [user(f"steer {turn}a"), user(f"steer {turn}b")])
        steered += [f"user: steer {turn}a", f"user: steer {turn}b"]
        request.answer(call("look"))
    request = await provider.called()
    expected = ["user: hello"]
    for turn in range(4):
        expected += ["assistant: look()", "tool: seen", f"user: steer {turn}a", f"user: steer {turn}b"]
    assert texts(request.messages) == expected
    request.answer("done")
    assert (await system.ended(task_id))["payload"]["turn"] == 5


async def test_spec_O10_many_at_once_keep_their_order(system: System, provider: Provider) -> None:
    stage = Stage(system, provider)
    await stage.start()
    task_id = await system.submit(stage.agent, "hello")
    first = await provider.called()
    for number in range(30):
        await system.orchestrator.steer_task(task_id, [user(f"{number}a"), user(f"{number}b")])
    # From several places at the same time: no order between them is promised, but none is lost.
    await asyncio.gather(
        *(system.orchestrator.steer_task(task_id, [user(f"x{one}"), user(f"y{one}")]) for one in "123")
    )
    first.answer("done at once")
    second = await provider.called()
    read = texts(second.messages)[2:]
    assert read[:60] == [f"user: {number}{letter}" for number in range(30) for letter in "ab"]
    pairs = sorted(zip(read[60::2], read[61::2], strict=True))
    assert pairs == [(f"user: x{one}", f"user: y{one}") for one in "123"]
    second.answer("done")
    assert (await system.ended(task_id))["payload"]["output"] == "done"


async def test_spec_O10_a_steer_during_the_last_call_leads_to_another_turn(system: System, provider: Provider) -> None:
    """As often as it happens; the answers in between are part of the conversation, and not the output."""
    agent = Agent(name="worker", model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent, "hello")
    for number in range(3):
        request = await provider.called()
        await system.orchestrator.steer_task(task_id, [user(f"not yet {number}")])
        request.answer(f"answer {number}")
    last = await provider.called()
    assert (await system.data(task_id))["payload"]["output"] is None
    assert "agent_output" not in await system.types(task_id)
    last.answer("answer 3")
    assert (await system.ended(task_id))["payload"]["output"] == "answer 3"
    assert texts(last.messages)[1:] == [
        text for number in range(3) for text in (f"assistant: answer {number}", f"user: not yet {number}")
    ]
    types = await system.types(task_id)
    assert types == ["run_enqueued", "run_started", *["run_steering_applied"] * 3, "agent_output", "run_completed"]


async def test_spec_O10_a_steer_during_the_call_that_gives_the_final_output_leads_to_another_turn(
    system: System, provider: Provider
) -> None:
    """Structured output: the call of `final_output` is answered, the message is read behind it, and the next counts."""
    agent = Agent(name="worker", model=gpt_41, output_type=Answer)
    await system.start(agent)
    task_id = await system.submit(agent, "hello")
    first = await provider.called()
    await system.orchestrator.steer_task(task_id, [user("not yet")])
    first.answer(call("final_output", text="one"))
    second = await provider.called()
    assert texts(second.messages) == [
        "user: hello", "assistant: final_output()", 'tool: {"text":"one"}', "user: not yet",
    ]  # fmt: skip
    assert second.messages[2]["tool_call_id"] == second.messages[1]["tool_calls"][0]["id"]
    assert (await system.data(task_id))["payload"]["output"] is None
    second.answer(call("final_output", text="two"))
    data = await system.ended(task_id)
    assert (data["payload"]["output"], data["payload"]["turn"]) == ({"text": "two"}, 2)
    assert (await system.event(task_id, "agent_output"))["data"] == {"text": "two"}
    assert (await system.types(task_id)).count("agent_output") == 1


async def test_spec_O10_a_steer_during_the_last_turn_of_ones_own_leads_to_another_one(system: System) -> None:
    """`run_turn` is overridden and says that the run is done; no model is asked."""
    begun, gate = asyncio.Event(), asyncio.Event()
    read: list[list[str]] = []

    class Own(BaseAgent[AgentContext]):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            read.append(texts(agent_ctx.messages))
            begun.set()
            await gate.wait()
            return TurnCompletion(is_done=True, context=agent_ctx, output=f"turn {agent_ctx.turn}")

    agent = Own(name="own")
    await system.start(agent)
    task_id = await system.submit(agent, "hello")
    await asyncio.wait_for(begun.wait(), 20)
    await system.orchestrator.steer_task(task_id, [user("not yet")])
    gate.set()
    data = await system.ended(task_id)
    assert read == [["user: hello"], ["user: hello", "user: not yet"]]
    assert (data["payload"]["output"], data["payload"]["turn"]) == ("turn 1", 2)


async def test_spec_O10_a_steer_at_any_moment_is_read_or_refused(system: System, provider: Provider) -> None:
    """Forty runs of two turns, each steered a little later: the model reads the message, or it is refused."""
    provider.replies = lambda messages: call("look") if messages[-1]["content"] == "hello" else "done"
    stage = Stage(system, provider)
    stage.gate.set()
    await stage.start(batch_size=50)
    await system.ended(await system.submit(stage.agent, "hello"))
    moments = 1 + len(await system.events())
    read = 0
    for number in range(40):
        task_id = await system.submit(stage.agent, "hello")

        await system.updates(lambda heard, number=number: len(heard) >= max(1, number % moments), task_ids=[task_id])  # type: ignore[misc]
        try:
            await system.orchestrator.steer_task(task_id, [user("marked")])
        except InactiveTaskError:
            expected = "run_steering_failed"
        else:
            expected, read = "run_steering_applied", read + 1
        data = await system.ended(task_id)
        assert texts(data["payload"]["messages"]).count("user: marked") == (expected == "run_steering_applied")
        assert texts(data["payload"]["messages"])[-1] == "assistant: done"
        published = [name for name in await system.types(task_id) if "steering" in name]
        assert published == [expected]
    assert read


@pytest.mark.parametrize("max_turns", [1, 3])
async def test_spec_O17_a_steer_in_the_last_allowed_turn_is_answered_and_leads_to_no_further_one(
    system: System, provider: Provider, max_turns: int
) -> None:
    """No further model call could read it. The run ends with its output, and an event says why."""
    stage = Stage(system, provider)
    stage.gate.set()
    stage.agent.max_turns = max_turns
    await stage.start()
    task_id = await system.submit(stage.agent, "hello")
    for _ in range(max_turns - 1):
        (await provider.called()).answer(call("look"))
    last = await provider.called()
    await system.orchestrator.steer_task(task_id, [user("too late")])
    last.answer("done")
    data = await system.ended(task_id)
    assert (data["status"], data["payload"]["output"]) == ("completed", "done")
    assert (data["payload"]["turn"], len(provider.calls)) == (max_turns, max_turns)
    assert (await system.types(task_id))[-3:] == ["run_steering_failed", "agent_output", "run_completed"]
    failed = await system.event(task_id, "run_steering_failed")
    assert failed["error"] == "the run ended (completed) before the steering messages were read"
    assert "user: too late" not in texts(data["payload"]["messages"])


async def test_spec_O17_a_steer_before_the_last_allowed_turn_is_read_in_it(system: System, provider: Provider) -> None:
    agent = Agent(name="worker", model=gpt_41, max_turns=2)
    await system.start(agent)
    task_id = await system.submit(agent, "hello")
    first = await provider.called()
    await system.orchestrator.steer_task(task_id, [user("once more")])
    first.answer("done at once")
    second = await provider.called()
    assert texts(second.messages) == ["user: hello", "assistant: done at once", "user: once more"]
    second.answer("done")
    data = await system.ended(task_id)
    assert (data["status"], data["payload"]["output"], data["payload"]["turn"]) == ("completed", "done", 2)
    assert "run_steering_failed" not in await system.types(task_id)


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_spec_E08_a_run_that_has_ended_takes_no_steering(system: System, provider: Provider, status: str) -> None:
    task_id = await ended_as(system, provider, status)
    before = await system.data(task_id)
    assert before["status"] == status
    with pytest.raises(InactiveTaskError, match=rf"task '{task_id}' has ended \({status}\)") as refused:
        await system.orchestrator.steer_task(task_id, [user("too late")])
    assert (refused.value.task_id, refused.value.status) == (task_id, status)
    failed = await system.event(task_id, "run_steering_failed")
    assert failed["error"] == str(refused.value)
    assert (failed["owner_id"], failed["agent_name"]) == ("owner", "worker")
    assert await system.data(task_id) == before


BAD: dict[str, Any] = {
    "nothing": None,
    "text": "be brief",
    "one message, and no list": user("be brief"),
    "a list of text": ["be brief"],
    "no role": [{"content": "x"}],
    "an unknown role": [{"role": "boss", "content": "x"}],
    "a tool's result": [{"role": "tool", "tool_call_id": "call_0_0", "content": "x"}],
    "tool calls": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1", "type": "function"}]}],
    "no content": [{"role": "user"}],
    "empty content": [user("")],
    "a number": [{"role": "user", "content": 5}],
    "parts that are none": [{"role": "user", "content": ["x"]}],
    "a good one before a bad one": [user("good"), {"role": "user"}],
}


@pytest.mark.parametrize("messages", BAD.values(), ids=BAD.keys())
async def test_spec_E08_a_malformed_steer_is_refused_as_a_whole(
    system: System, provider: Provider, messages: Any
) -> None:
    """With a clear error, and `run_steering_failed` for the owner. The run goes on as if nothing had been said."""
    agent = Agent(name="worker", model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent, "hello")
    request = await provider.called()
    with pytest.raises(ConfigError, match="Invalid steering message format") as refused:
        await system.orchestrator.steer_task(task_id, messages)
    assert (await system.event(task_id, "run_steering_failed"))["error"] == str(refused.value)
    request.answer("done")
    data = await system.ended(task_id)
    assert texts(data["payload"]["messages"]) == ["user: hello", "assistant: done"]
    assert len(provider.calls) == 1


@pytest.mark.parametrize("content", [object(), "\ud800"], ids=["an object", "half of a character"])
async def test_spec_E08_what_json_cannot_hold_is_refused_as_a_whole(system: System, content: Any) -> None:
    agent = Agent(name="worker", model=gpt_41)
    task_id = await system.submit(agent, "hello")
    message = {"role": "user", "content": [{"type": "text", "text": content}]}
    with pytest.raises(ContextError, match=r"messages\[1\].* cannot be stored as JSON"):
        await system.orchestrator.steer_task(task_id, [user("good"), message])
    await system.event(task_id, "run_steering_failed")
    keys = (await system.mailbox()).keys
    assert await system.execute("KEYS", f"{keys.prefix}mail:*") == []


async def test_spec_E08_a_full_mailbox_is_told_of_and_nothing_is_half_stored(
    system: System, provider: Provider
) -> None:
    """A thousand messages may wait."""
    agent = Agent(name="worker", model=gpt_41)
    task_id = await system.submit(agent, "hello")
    await system.orchestrator.steer_task(task_id, [user(str(number)) for number in range(999)])
    with pytest.raises(MailboxFullError, match="999 steering messages waiting, and 1000 is the most"):
        await system.orchestrator.steer_task(task_id, [user("a"), user("b")])
    await system.event(task_id, "run_steering_failed")
    await system.start(agent)
    request = await provider.called()
    assert texts(request.messages)[1:] == [f"user: {number}" for number in range(999)]
    request.answer("done")
    await system.ended(task_id)


async def test_spec_E08_a_steer_that_nobody_reads_is_told_of(system: System, provider: Provider) -> None:
    """It was accepted, and then the run failed."""
    agent = Agent(name="worker", model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent, "hello")
    request = await provider.called()
    await system.orchestrator.steer_task(task_id, [user("be brief")])
    request.refuse(401)
    assert (await system.ended(task_id))["status"] == "failed"
    failed = await system.event(task_id, "run_steering_failed")
    assert failed["error"] == "the run ended (failed) before the steering messages were read"
    assert (await system.types(task_id))[-3:] == ["run_steering_failed", "task_failed", "run_failed"]


async def test_spec_E08_the_owner_hears_of_it_live(system: System, provider: Provider) -> None:
    agent = Agent(name="worker", model=gpt_41)
    provider.replies = ["done"]
    task_id = await system.submit(agent, "hello")
    heard = asyncio.create_task(
        system.updates(lambda heard: len(heard) == 2, task_ids=[task_id], event_pattern="run_steering_.*", timeout=20)
    )
    await system.orchestrator.steer_task(task_id, [user("be brief")])
    with pytest.raises(ConfigError):
        await system.orchestrator.steer_task(task_id, [{}])
    await system.start(agent, quick())
    failed, applied = await heard
    assert failed["event_type"] == "run_steering_failed" and failed["error"].startswith("Invalid steering message")
    assert applied["event_type"] == "run_steering_applied" and applied["data"] == {"messages": 1}


async def test_spec_O10_a_run_that_is_not_there_is_not_steered(system: System) -> None:
    with pytest.raises(TaskNotFoundError, match="there is no task 'unknown'"):
        await system.orchestrator.steer_task("unknown", [user("hello")])
    with pytest.raises(InvalidTaskIdError, match="is not a task id"):
        await system.orchestrator.steer_task("no id, surely", [user("hello")])
