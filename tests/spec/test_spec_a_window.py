"""Chapter A of PROMISES.md, A16: `context_window_limit`. Real: Valkey, HTTP. Fake: the language model."""

from typing import Any

import pytest
from llmock.pytest_plugin import LLMock

from factorial import Agent, AgentContext, ExecutionContext, ModelSettings, gpt_41
from tests.harness import System

PAGES = 12
LIMIT = 1500
PAGE = "the day was long and the road was dry " * 20
"""200 tokens: each of these words is one token for every tokenizer of OpenAI, with the space before it."""


def read_page(number: int) -> str:
    """Read one page of the book."""
    return f"{PAGE}({number})"


def script(llmock: LLMock, pages: int = PAGES) -> None:
    """The model reads one page after the other, and then answers."""
    for number in range(pages):
        llmock.call_tool("read_page", {"number": number})
    llmock.reply("A dry book.")


def reader(**options: Any) -> Agent:
    settings: dict[str, Any] = {"name": "reader", "instructions": "Read on.", "tools": [read_page], "model": gpt_41}
    return Agent(**settings | {"context_window_limit": LIMIT} | options)


def real_tokens(body: dict[str, Any]) -> int:
    """A lower bound of the real tokens: the number of words that are sent."""
    return sum(len((message["content"] or "").split()) for message in body["messages"])


def is_whole(messages: list[dict[str, Any]]) -> bool:
    """Whether each tool call is followed by its results, and no result comes without its call."""
    waiting: list[str] = []
    for message in messages:
        if (message["role"] == "tool") != bool(waiting):
            return False
        if waiting and message["tool_call_id"] != waiting.pop(0):
            return False
        waiting += [call["id"] for call in message.get("tool_calls", ())]
    return not waiting


async def trimmings(system: System, task_id: str) -> list[dict[str, Any]]:
    """The data of the task's events about trimming."""
    return [event["data"] for event in await system.events(task_id) if event["event_type"] == "context_window_trimmed"]


async def test_spec_A16_no_request_exceeds_the_limit_and_the_conversation_stays_whole(
    system: System, llmock: LLMock
) -> None:
    script(llmock)
    agent = reader()
    await system.start(agent)
    task_id = await system.submit(agent, "What is the book about?")
    data = await system.ended(task_id, 60)

    assert data["payload"]["output"] == "A dry book."
    stored = data["payload"]["messages"]
    assert len(stored) == 2 + 2 * PAGES
    assert [message["content"][-3:] for message in stored if message["role"] == "tool"][0:3] == ["(0)", "(1)", "(2)"]

    bodies = [request.body for request in llmock.requests]
    assert len(bodies) == PAGES + 1
    assert max(real_tokens(body) for body in bodies) <= LIMIT
    assert min(real_tokens(body) for body in bodies[-4:]) > LIMIT / 3, "not much more is left out than has to be"
    for turn, body in enumerate(bodies):
        sent = body["messages"]
        assert sent[0] == {"role": "system", "content": "Read on."}
        assert sent[1] == {"role": "user", "content": "What is the book about?"}
        newest = 1 + 2 * turn  # how many messages were stored at that time
        assert sent[-2:] == stored[newest - 2 : newest] or turn == 0
        assert sent[2:] == stored[newest - len(sent[2:]) : newest], "what is sent is the end of what is stored"
        assert is_whole(sent)


async def test_spec_A16_an_event_says_what_each_request_leaves_out(system: System, llmock: LLMock) -> None:
    script(llmock)
    agent = reader()
    await system.start(agent)
    task_id = await system.submit(agent, "What is the book about?")
    heard = await system.updates(lambda so_far: so_far[-1]["event_type"] == "run_completed", 60)

    trimmed = [event for event in heard if event["event_type"] == "context_window_trimmed"]
    shortened = {
        turn: len(request.body["messages"])
        for turn, request in enumerate(llmock.requests)
        if len(request.body["messages"]) < 2 + 2 * turn
    }
    assert {event["turn"]: event["data"]["messages_sent"] for event in trimmed} == shortened and shortened
    for event in trimmed:
        assert event["task_id"] == task_id and event["agent_name"] == "reader" and event["timestamp"]
        assert event["data"]["limit"] == LIMIT
        assert event["data"]["messages_left_out"] + event["data"]["messages_sent"] == 2 + 2 * event["turn"]
        sent = llmock.requests[event["turn"]].body
        assert real_tokens(sent) <= event["data"]["tokens"] <= LIMIT
    types = [event["event_type"] for event in heard]
    began = types.index("context_window_trimmed")
    assert types[began - 1 : began + 2] == [
        "progress_update_completion_started",
        "context_window_trimmed",
        "progress_update_completion_completed",
    ]


async def test_spec_A16_steering_is_kept_when_older_answers_are_left_out(system: System, llmock: LLMock) -> None:
    script(llmock)

    async def turn_page(number: int, execution_ctx: ExecutionContext) -> str:
        """Read one page of the book."""
        if number == 2:
            message = {"role": "user", "content": "Answer in French."}
            await system.orchestrator.steer_task(execution_ctx.task_id, [message])
        return read_page(number)

    turn_page.__name__ = "read_page"
    agent = reader(tools=[turn_page])
    await system.start(agent)
    task_id = await system.submit(agent, "What is the book about?")
    data = await system.ended(task_id, 60)
    assert data["status"] == "completed"
    steered = [
        request.body["messages"]
        for request in llmock.requests
        if {"role": "user", "content": "Answer in French."} in request.body["messages"]
    ]
    assert len(steered) == PAGES - 2, "from the turn after it on, in every request"
    assert (await trimmings(system, task_id))[-1]["messages_left_out"] > 8
    assert all(is_whole(messages) for messages in steered)


async def test_spec_A16_a_request_that_cannot_fit_fails_the_run_before_the_model_is_called(
    system: System, llmock: LLMock
) -> None:
    agent = reader(instructions=PAGE * 8)
    await system.start(agent)
    task_id = await system.submit(agent, "What is the book about?")
    data = await system.ended(task_id)
    assert data["status"] == "failed"
    assert f"does not fit into {LIMIT} tokens" in data["error"] and "raise context_window_limit" in data["error"]
    assert await system.types(task_id) == ["run_enqueued", "run_started", "task_failed", "run_failed"]
    assert not llmock.requests


async def test_spec_A16_a_result_that_is_too_long_fails_the_run_before_the_next_model_call(
    system: System, llmock: LLMock
) -> None:
    def read_all() -> str:
        """Read the whole book."""
        return PAGE * 10

    llmock.call_tool("read_all")
    agent = reader(tools=[read_all])
    await system.start(agent)
    data = await system.ended(await system.submit(agent, "What is the book about?"))
    assert data["status"] == "failed" and "does not fit" in data["error"]
    assert len(llmock.requests) == 1
    assert data["payload"]["messages"][-1]["content"] == PAGE * 10, "the conversation is stored as it was"


class Rephrasing(Agent):
    """Passes its own messages to the model."""

    async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
        """Ask with a reminder at the end."""
        return await super().completion(agent_ctx, [*messages, {"role": "user", "content": "Remember: in French."}])


class Preparing(Agent):
    """Prepares the messages in its own way."""

    def prepare_messages(self, agent_ctx: AgentContext) -> list[dict[str, Any]]:
        """All messages, and a reminder."""
        return [*super().prepare_messages(agent_ctx), {"role": "user", "content": "Remember: in French."}]


@pytest.mark.parametrize("kind", [Rephrasing, Preparing])
async def test_spec_A16_overridden_methods_stay_within_the_limit_too(
    system: System, llmock: LLMock, kind: type[Agent]
) -> None:
    script(llmock)
    agent = kind(name="reader", instructions="Read on.", tools=[read_page], model=gpt_41, context_window_limit=LIMIT)
    await system.start(agent)
    data = await system.ended(await system.submit(agent, "What is the book about?"), 60)
    assert data["status"] == "completed"
    for request in llmock.requests:
        sent = request.body["messages"]
        assert real_tokens(request.body) <= LIMIT and is_whole(sent)
        assert sent[-1] == {"role": "user", "content": "Remember: in French."}


async def test_spec_A16_the_answer_counts_towards_the_limit(system: System, llmock: LLMock) -> None:
    script(llmock)
    agent = reader(model_settings=ModelSettings(max_completion_tokens=700))
    await system.start(agent)
    task_id = await system.submit(agent, "What is the book about?")
    await system.ended(task_id, 60)
    trimmed = {
        event["turn"]: event["data"]
        for event in await system.events(task_id)
        if event["event_type"] == "context_window_trimmed"
    }
    assert len(trimmed) > 6
    for turn, data in trimmed.items():
        assert real_tokens(llmock.requests[turn].body) + 700 <= data["tokens"] <= LIMIT


async def test_spec_A16_without_a_limit_all_is_sent(system: System, llmock: LLMock) -> None:
    """The control: in the same run, nothing is left out."""
    script(llmock)
    agent = reader(context_window_limit=None)
    await system.start(agent)
    task_id = await system.submit(agent, "What is the book about?")
    await system.ended(task_id, 60)
    assert len(llmock.last_request.body["messages"]) == 2 + 2 * PAGES
    assert real_tokens(llmock.last_request.body) > LIMIT
    assert await trimmings(system, task_id) == []
