"""Row I12: what goes over the wire is what the user wrote, turn by turn, and nothing else but the JSON of the tools and
of `final_output`, and what tools answered. Whole bodies of recorded HTTP requests are compared.

Real: Valkey, HTTP, the openai client. Fake: the language model (`llmock`).
"""

import json
from itertools import chain
from typing import Any

import pytest
from llmock.pytest_plugin import LLMock
from llmock.scenarios import Reply, ToolCall
from pydantic import BaseModel, Field

from factorial import (
    Agent,
    AgentContext,
    ExecutionContext,
    ModelSettings,
    RetryableError,
    fallback_models,
    gpt_41,
    gpt_41_mini,
)
from tests.harness import System

SYSTEM = {"role": "system", "content": "You plan trips. Be brief."}
QUESTION = {"role": "user", "content": "A trip to Oslo?"}


def get_weather(city: str, days: int = 1) -> str:
    """How the weather will be.

    Args:
        city: Where.
        days: How far ahead.
    """
    if city == "Atlantis":
        raise LookupError("no such city")
    return f"{days} dry days in {city}"


async def book(seat: str, agent_ctx: AgentContext, execution_ctx: ExecutionContext) -> dict[str, str]:
    """Book a seat."""
    if execution_ctx.retries == 0:
        raise RetryableError("the line is busy")
    return {"booked": seat}


GET_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "How the weather will be.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where."},
                "days": {"type": "integer", "description": "How far ahead.", "default": 1},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
BOOK = {
    "type": "function",
    "function": {
        "name": "book",
        "description": "Book a seat.",
        "parameters": {
            "type": "object",
            "properties": {"seat": {"type": "string"}},
            "required": ["seat"],
            "additionalProperties": False,
        },
    },
}


class Plan(BaseModel):
    """The plan of a trip."""

    city: str
    days: int = Field(description="How long.", ge=1)


FINAL_OUTPUT = {
    "type": "function",
    "function": {
        "name": "final_output",
        "description": "The plan of a trip.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "description": "How long.", "minimum": 1},
            },
            "required": ["city", "days"],
        },
    },
}


TOO_FEW_DAYS = (
    "Error: the arguments of 'final_output' are not valid: 'days': Input should be greater than or equal to 1 "
    "(you sent 0)"
)


def sent(llmock: LLMock) -> list[dict[str, Any]]:
    """The bodies of all requests. The ids of tool calls, which the provider makes up, are numbered: call-1, call-2."""
    bodies = json.dumps([record.body for record in llmock.requests])
    ids = [call["id"] for message in _last_messages(bodies) for call in message.get("tool_calls") or ()]
    for number, call_id in enumerate(ids, 1):
        bodies = bodies.replace(json.dumps(call_id), f'"call-{number}"')
    found: list[dict[str, Any]] = json.loads(bodies)
    return found


def _last_messages(bodies: str) -> list[dict[str, Any]]:
    *_, last = json.loads(bodies)
    messages: list[dict[str, Any]] = last["messages"]
    return messages


def called(number: int, name: str, **arguments: Any) -> dict[str, Any]:
    """The model's message that calls one tool."""
    return calling((number, name, arguments))


def calling(*calls: tuple[int, str, dict[str, Any]]) -> dict[str, Any]:
    """The model's message that calls tools."""
    tool_calls = [
        {
            "id": f"call-{number}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for number, name, arguments in calls
    ]
    return {"role": "assistant", "content": None, "tool_calls": tool_calls}


def answered(number: int, content: str) -> dict[str, Any]:
    """The message that answers a call."""
    return {"role": "tool", "tool_call_id": f"call-{number}", "content": content}


async def run(system: System, agent: Agent, query: str | AgentContext = "A trip to Oslo?") -> dict[str, Any]:
    """A task's data, after it has run to its end in a worker."""
    await system.start(agent)
    return await system.ended(await system.submit(agent, query), timeout=60)


async def test_spec_I12_a_question_alone_is_sent_alone(system: System, llmock: LLMock) -> None:
    llmock.reply("Yes.")
    await run(system, Agent(model=gpt_41))
    assert sent(llmock) == [{"model": "gpt-4.1", "messages": [QUESTION]}]


async def test_spec_I12_instructions_and_messages_are_sent_as_they_were_written(system: System, llmock: LLMock) -> None:
    llmock.reply("Yes.")
    image = [{"type": "text", "text": "  Where is\n this? "}, {"type": "image_url", "image_url": {"url": "data:x"}}]
    earlier: list[dict[str, Any]] = [
        {"role": "developer", "content": "Über alles: politeness.  "},
        {"role": "user", "content": image, "name": "kim"},
        {"role": "assistant", "content": "Oslo 🇳🇴"},
    ]
    agent = Agent(instructions=lambda ctx: f"  {{curly}} %s {ctx.query}\n", model=gpt_41)
    await run(system, agent, AgentContext(query="And $this?", messages=earlier))
    assert sent(llmock) == [
        {
            "model": "gpt-4.1",
            "messages": [
                {"role": "system", "content": "  {curly} %s And $this?\n"},
                *earlier,
                {"role": "user", "content": "And $this?"},
            ],
        }
    ]


async def test_spec_I12_a_run_with_tools_turn_by_turn(system: System, llmock: LLMock) -> None:
    """Two calls at once, an error of a tool, a tool that is not there, arguments that do not fit, and an answer."""
    llmock.add(
        Reply(
            tool_calls=(
                ToolCall("get_weather", {"city": "Oslo", "days": 3}),
                ToolCall("get_weather", {"city": "Atlantis"}),
            )
        )
    )
    llmock.call_tool("teleport", {"to": "Oslo"}).call_tool("get_weather", {"days": "many"}).reply("Go.")
    agent = Agent(instructions="You plan trips. Be brief.", tools=[get_weather], model=gpt_41)
    data = await run(system, agent)
    turns = [
        [SYSTEM, QUESTION],
        [
            calling((1, "get_weather", {"city": "Oslo", "days": 3}), (2, "get_weather", {"city": "Atlantis"})),
            answered(1, "3 dry days in Oslo"),
            answered(2, "Error: LookupError: no such city"),
        ],
        [
            called(3, "teleport", to="Oslo"),
            answered(3, "Error: there is no tool 'teleport'; the tools are: get_weather"),
        ],
        [
            called(4, "get_weather", days="many"),
            answered(
                4,
                "Error: the arguments of 'get_weather' are not valid: 'city' is missing; 'days': Input should be "
                "a valid integer, unable to parse string as an integer (you sent 'many')",
            ),
        ],
    ]
    assert sent(llmock) == [
        {"model": "gpt-4.1", "messages": list(chain(*turns[: number + 1])), "tools": [GET_WEATHER]}
        for number in range(4)
    ]
    assert data["payload"]["output"] == "Go."


async def test_spec_I12_what_is_set_is_sent_and_nothing_else(system: System, llmock: LLMock) -> None:
    llmock.reply("Yes.")
    settings: ModelSettings[AgentContext] = ModelSettings(
        temperature=0.0, max_completion_tokens=lambda ctx: 77, tool_choice="auto", parallel_tool_calls=False
    )
    await run(system, Agent(tools=[get_weather], model=gpt_41, model_settings=settings))
    assert sent(llmock) == [
        {
            "model": "gpt-4.1", "messages": [QUESTION], "tools": [GET_WEATHER], "temperature": 0.0,
            "max_completion_tokens": 77, "tool_choice": "auto", "parallel_tool_calls": False,
        }
    ]  # fmt: skip


async def test_spec_I12_an_invalid_structured_answer_is_corrected_by_its_error_alone(
    system: System, llmock: LLMock
) -> None:
    llmock.call_tool("final_output", {"city": "Oslo", "days": 0}).call_tool("final_output", {"city": "Oslo", "days": 2})
    agent = Agent(instructions="You plan trips. Be brief.", output_type=Plan, model=gpt_41)
    data = await run(system, agent)
    first, second = sent(llmock)
    assert first == {
        "model": "gpt-4.1",
        "messages": [SYSTEM, QUESTION],
        "tools": [FINAL_OUTPUT],
        "tool_choice": "required",
    }
    exchange = [called(1, "final_output", city="Oslo", days=0), answered(1, TOO_FEW_DAYS)]
    assert second == {**first, "messages": [SYSTEM, QUESTION, *exchange]}
    assert data["payload"]["output"] == {"city": "Oslo", "days": 2}


async def test_spec_I12_the_last_turn_is_asked_for_by_settings_not_by_words(system: System, llmock: LLMock) -> None:
    llmock.call_tool("get_weather", {"city": "Oslo"}).reply("Go.")
    agent = Agent(instructions="You plan trips. Be brief.", tools=[get_weather], model=gpt_41, max_turns=2)
    await run(system, agent)
    exchange = [called(1, "get_weather", city="Oslo"), answered(1, "1 dry days in Oslo")]
    assert sent(llmock) == [
        {"model": "gpt-4.1", "messages": [SYSTEM, QUESTION], "tools": [GET_WEATHER]},
        {"model": "gpt-4.1", "messages": [SYSTEM, QUESTION, *exchange], "tools": [GET_WEATHER], "tool_choice": "none"},
    ]


async def test_spec_I12_the_last_turn_of_a_structured_run_is_asked_for_by_settings_too(
    system: System, llmock: LLMock
) -> None:
    llmock.call_tool("get_weather", {"city": "Oslo"}).call_tool("final_output", {"city": "Oslo", "days": 2})
    agent = Agent(tools=[get_weather], model=gpt_41, output_type=Plan, max_turns=2)
    await run(system, agent)
    first = {
        "model": "gpt-4.1",
        "messages": [QUESTION],
        "tools": [GET_WEATHER, FINAL_OUTPUT],
        "tool_choice": "required",
    }
    exchange = [called(1, "get_weather", city="Oslo"), answered(1, "1 dry days in Oslo")]
    only = {"type": "function", "function": {"name": "final_output"}}
    assert sent(llmock) == [first, {**first, "messages": [QUESTION, *exchange], "tool_choice": only}]


async def test_spec_I12_a_retried_call_and_a_retried_turn_send_the_same_again(system: System, llmock: LLMock) -> None:
    llmock.fail(503, times=4).call_tool("book", {"seat": "12A"}).reply("Done.")
    agent = Agent(instructions="You plan trips. Be brief.", tools=[book], model=gpt_41)
    data = await run(system, agent)
    first = {"model": "gpt-4.1", "messages": [SYSTEM, QUESTION], "tools": [BOOK]}
    exchange = [called(1, "book", seat="12A"), answered(1, '{"booked":"12A"}')]
    assert sent(llmock) == [first] * 5 + [{**first, "messages": [SYSTEM, QUESTION, *exchange]}]
    assert "task_retried" in await system.types(data["id"])


async def test_spec_I12_a_fallback_model_is_sent_the_same(system: System, llmock: LLMock) -> None:
    llmock.fail(400, model="gpt-4.1").call_tool("get_weather", {"city": "Oslo"})
    llmock.fail(400, model="gpt-4.1").reply("Go.")
    agent = Agent(tools=[get_weather], model=fallback_models(gpt_41, gpt_41_mini))
    await run(system, agent)
    bodies = sent(llmock)
    assert [body.pop("model") for body in bodies] == ["gpt-4.1", "gpt-4.1-mini"] * 2
    first = {"messages": [QUESTION], "tools": [GET_WEATHER]}
    exchange = [called(1, "get_weather", city="Oslo"), answered(1, "1 dry days in Oslo")]
    second = {**first, "messages": [QUESTION, *exchange]}
    assert bodies == [first, first, second, second]


async def test_spec_I12_streaming_adds_what_asks_for_it(system: System, llmock: LLMock) -> None:
    llmock.call_tool("get_weather", {"city": "Oslo"}).reply("Go.")
    await run(system, Agent(tools=[get_weather], model=gpt_41, stream=True))
    streaming = {"stream": True, "stream_options": {"include_usage": True}}
    exchange = [called(1, "get_weather", city="Oslo"), answered(1, "1 dry days in Oslo")]
    assert sent(llmock) == [
        {"model": "gpt-4.1", "messages": [QUESTION], "tools": [GET_WEATHER], **streaming},
        {"model": "gpt-4.1", "messages": [QUESTION, *exchange], "tools": [GET_WEATHER], **streaming},
    ]


async def test_spec_I12_steering_is_sent_as_it_was_written(system: System, llmock: LLMock) -> None:
    llmock.reply("Go by train.")
    agent = Agent(instructions="You plan trips. Be brief.", model=gpt_41)
    task_id = await system.submit(agent, "A trip to Oslo?")
    steering = [{"role": "user", "content": "By train, <please>."}, {"role": "system", "content": "No planes."}]
    await system.orchestrator.steer_task(task_id, steering)
    await system.start(agent)
    await system.ended(task_id)
    assert sent(llmock) == [{"model": "gpt-4.1", "messages": [SYSTEM, QUESTION, *steering]}]


@pytest.mark.parametrize("stream", [False, True])
async def test_spec_I12_inline_sends_what_a_worker_sends(system: System, llmock: LLMock, stream: bool) -> None:
    agent = Agent(instructions="You plan trips. Be brief.", tools=[get_weather], model=gpt_41, stream=stream)
    llmock.call_tool("get_weather", {"city": "Oslo"}).reply("Go.")
    await run(system, agent)
    by_worker = sent(llmock)
    llmock.reset()
    llmock.call_tool("get_weather", {"city": "Oslo"}).reply("Go.")
    await agent.run_inline(AgentContext(query="A trip to Oslo?"))
    assert sent(llmock) == by_worker
