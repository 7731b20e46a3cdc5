"""Chapter A of PROMISES.md: an agent's parameters (A01). Real: Valkey, HTTP, the openai client. Fake: the language
model. The rows from A02 on have files of their own, `test_spec_a_*.py`."""

from typing import Any

import pytest
from llmock.pytest_plugin import LLMock

from factorial import Agent, AgentContext, BaseAgent, gpt_41
from tests.harness import System, quick


def get_weather(location: str) -> str:
    """Get the current weather for a location"""
    return f"The weather in {location} is sunny and 22 degrees"


async def run(system: System, agent: BaseAgent[Any], query: str | AgentContext = "question") -> dict[str, Any]:
    """Start a process for the agent, have it run one task, and give what is stored of that."""
    await system.start(agent)
    return await system.ended(await system.submit(agent, query), 30)


async def test_spec_A01_an_agent_asks_its_model(system: System, llmock: LLMock) -> None:
    llmock.reply("Sunny.")
    agent = Agent(name="weather", instructions="Be brief.", model=gpt_41)
    data = await run(system, agent, "How is the weather?")
    assert data["payload"]["output"] == "Sunny."
    assert llmock.last_request.body == {
        "model": "gpt-4.1",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "How is the weather?"},
        ],
    }


async def test_spec_A01_a_plain_function_is_a_tool(system: System, llmock: LLMock) -> None:
    """The document's first example."""
    llmock.call_tool("get_weather", {"location": "San Francisco"}).reply("It is sunny in San Francisco.")
    agent = Agent(
        instructions="You are a helpful weather assistant. Always be friendly and informative.",
        tools=[get_weather],
    )
    data = await run(system, agent, "What's the weather like in San Francisco?")
    assert data["payload"]["output"] == "It is sunny in San Francisco."
    first, second = (request.body for request in llmock.requests)
    assert first["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "Get the current weather for a location",
                "parameters": {
                    "type": "object",
                    "properties": {"location": {"type": "string"}},
                    "required": ["location"],
                    "additionalProperties": False,
                },
            },
        }
    ]
    call, result = second["messages"][-2:]
    assert call["tool_calls"][0]["function"]["name"] == "get_weather"
    assert result == {
        "role": "tool",
        "tool_call_id": call["tool_calls"][0]["id"],
        "content": "The weather in San Francisco is sunny and 22 degrees",
    }


async def test_spec_A01_instructions_may_be_a_function_of_the_context(system: System, llmock: LLMock) -> None:
    llmock.call_tool("get_weather", {"location": "Oslo"}).reply("Cold.")
    agent = Agent(
        name="weather",
        instructions=lambda ctx: f"You answer {ctx.query!r}, turn {ctx.turn}.",
        tools=[get_weather],
        model=gpt_41,
    )
    await run(system, agent, "Oslo?")
    said = [request.body["messages"][0] for request in llmock.requests]
    assert said == [
        {"role": "system", "content": "You answer 'Oslo?', turn 0."},
        {"role": "system", "content": "You answer 'Oslo?', turn 1."},
    ]


async def test_spec_A01_name_and_description_are_for_people(system: System, llmock: LLMock) -> None:
    """The name is in the events; neither is sent to the model."""
    agent = Agent(name="weather", description="Tells the weather", model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    await system.ended(task_id)
    assert agent.description == "Tells the weather"
    assert {event["agent_name"] for event in await system.events(task_id)} == {"weather"}
    assert "Tells" not in str(llmock.last_request.body) and "weather" not in str(llmock.last_request.body)


async def test_spec_A01_in_the_last_turn_the_model_is_asked_to_answer(system: System, llmock: LLMock) -> None:
    llmock.call_tool("get_weather", {"location": "Oslo"}).call_tool("get_weather", {"location": "Rome"}).reply("Mild.")
    agent = Agent(name="weather", tools=[get_weather], model=gpt_41, max_turns=3)
    data = await run(system, agent)
    assert (data["status"], data["payload"]["output"], data["payload"]["turn"]) == ("completed", "Mild.", 3)
    assert [request.body.get("tool_choice") for request in llmock.requests] == [None, None, "none"]


async def test_spec_A01_a_run_that_is_not_done_within_max_turns_has_failed(system: System, llmock: LLMock) -> None:
    """A model that calls tools although it was asked not to."""
    for _ in range(3):
        llmock.call_tool("get_weather", {"location": "Oslo"})
    agent = Agent(name="weather", tools=[get_weather], model=gpt_41, max_turns=2)
    data = await run(system, agent)
    assert (data["status"], data["error"]) == ("failed", "the run was not done within max_turns=2")
    assert len(llmock.requests) == 2


async def test_spec_A01_a_model_that_does_not_answer_within_request_timeout_is_asked_again(
    system: System, llmock: LLMock
) -> None:
    llmock.delay(5).reply("Late.").reply("Here I am.")
    agent = Agent(name="slow", model=gpt_41, request_timeout=2.0)
    await system.start(agent, quick(max_retries=1))
    task_id = await system.submit(agent)
    data = await system.ended(task_id, 30)
    assert data["payload"]["output"] == "Here I am."
    failed = await system.event(task_id, "task_failed")
    assert failed["error"] == "gpt-4.1 at openai: no answer in time (raise request_timeout if the model needs longer)"
    assert Agent(name="other").request_timeout == 120.0


async def test_spec_A01_tools_get_the_raw_string_with_parse_tool_args_false(system: System, llmock: LLMock) -> None:
    given: list[object] = []

    def run_query(arguments: str) -> str:
        """Run a query."""
        given.append(arguments)
        return "3 rows"

    llmock.call_tool("run_query", {"sql": "select 1", "limit": 3}).reply("Three.")
    agent = Agent(name="raw", tools=[run_query], model=gpt_41, parse_tool_args=False)
    data = await run(system, agent)
    called = data["payload"]["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert given == [called] and isinstance(given[0], str) and "select 1" in called
    assert data["payload"]["output"] == "Three."


async def test_spec_A01_a_context_class_is_what_the_agent_works_on(system: System, llmock: LLMock) -> None:
    class ResearchContext(AgentContext):
        research_topic: str = ""
        sources_found: list[str] = []  # noqa: RUF012  # as the document writes it

    def note_source(title: str, agent_ctx: ResearchContext) -> str:
        """Note a source."""
        agent_ctx.sources_found.append(title)
        return f"{len(agent_ctx.sources_found)} on {agent_ctx.research_topic}"

    class ResearchAgent(BaseAgent[ResearchContext]):
        def __init__(self) -> None:
            super().__init__(
                description="Research specialist",
                instructions="You conduct thorough research",
                tools=[note_source],
                context_class=ResearchContext,
                model=gpt_41,
            )

    llmock.call_tool("note_source", {"title": "A book"}).reply("Done.")
    context = ResearchContext(query="Research it", research_topic="AI in Education", messages=[], turn=0)
    data = await run(system, ResearchAgent(), context)
    assert data["payload"]["sources_found"] == ["A book"]
    assert data["payload"]["messages"][2]["content"] == "1 on AI in Education"


@pytest.mark.parametrize("stream", [False, True])
async def test_spec_A01_streamed_or_not_the_answer_is_the_same(system: System, llmock: LLMock, stream: bool) -> None:
    llmock.call_tool("get_weather", {"location": "Oslo"}).reply("It is sunny in Oslo today.")
    data = await run(system, Agent(name="weather", tools=[get_weather], model=gpt_41, stream=stream))
    assert data["payload"]["output"] == "It is sunny in Oslo today."
    assert [request.stream for request in llmock.requests] == [stream, stream]
