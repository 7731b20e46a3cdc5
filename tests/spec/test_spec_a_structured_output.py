"""Chapter A of PROMISES.md, A07: structured output. Real: Valkey, HTTP, the openai client. Fake: the language
model."""

from typing import Any

from llmock.pytest_plugin import LLMock
from llmock.scenarios import Reply, ToolCall

from factorial import Agent, AgentContext, gpt_41
from factorial.utils import BaseModel
from tests.harness import System


class Joke(BaseModel):
    """A joke."""

    setup: str
    punchline: str


class Verse(BaseModel):
    """A part of a nested output."""

    text: str
    syllables: int


class Poem(BaseModel):
    """An output with models in it."""

    title: str
    verses: list[Verse]


JOKE = {"setup": "Why did the run stop?", "punchline": "It took its turn."}


def search_web(query: str) -> str:
    """Search the web for information"""
    return f"Search results for: {query}"


def joker(**options: Any) -> Agent:
    """The document's agent."""
    settings: dict[str, Any] = {
        "description": "Joke Agent", "instructions": "Funny agent", "tools": [search_web], "output_type": Joke,
        "model": gpt_41,
    }  # fmt: skip
    return Agent(**settings | options)


async def run(system: System, agent: Agent) -> tuple[str, dict[str, Any]]:
    """Run one task of the agent. Returns its id, and what is stored of it."""
    await system.start(agent)
    task_id = await system.submit(agent, "Tell me a joke.")
    return task_id, await system.ended(task_id, 30)


def tool_results(body: dict[str, Any]) -> list[str]:
    """What the model sees of its tool calls."""
    return [message["content"] for message in body["messages"] if message["role"] == "tool"]


async def test_spec_A07_final_output_is_offered_and_must_be_called(system: System, llmock: LLMock) -> None:
    llmock.call_tool("search_web", {"query": "jokes"}).call_tool("final_output", JOKE)
    _, data = await run(system, joker())
    assert (data["status"], data["payload"]["output"]) == ("completed", JOKE)
    for request in llmock.requests:
        names = [tool["function"]["name"] for tool in request.body["tools"]]
        assert names == ["search_web", "final_output"]
        assert request.body["tool_choice"] == "required"
        schema = request.body["tools"][1]["function"]["parameters"]
        assert set(schema["properties"]) == {"setup", "punchline"}
        assert set(schema["required"]) == {"setup", "punchline"}


async def test_spec_A07_the_output_is_in_the_event_and_in_the_answer_to_the_call(
    system: System, llmock: LLMock
) -> None:
    """The conversation stays valid: the call of `final_output` is answered, too."""
    llmock.call_tool("final_output", JOKE)
    task_id, data = await run(system, joker())
    assert (await system.event(task_id, "agent_output"))["data"] == JOKE
    call, answer = data["payload"]["messages"][-2:]
    assert answer["role"] == "tool" and answer["tool_call_id"] == call["tool_calls"][0]["id"]


async def test_spec_A07_an_invalid_answer_is_corrected_by_the_model(system: System, llmock: LLMock) -> None:
    llmock.call_tool("final_output", {"setup": "Why?"}).call_tool("final_output", JOKE | {"setup": 7})
    llmock.call_tool("final_output", JOKE)
    _, data = await run(system, joker())
    assert (data["status"], data["payload"]["output"]) == ("completed", JOKE)
    first, second, third = (request.body for request in llmock.requests)
    assert tool_results(first) == []
    assert tool_results(second) == ["Error: the arguments of 'final_output' are not valid: 'punchline' is missing"]
    assert "'setup': Input should be a valid string (you sent 7)" in tool_results(third)[1]


async def test_spec_A07_nested_models(system: System, llmock: LLMock) -> None:
    poem = {"title": "Rain", "verses": [{"text": "drip", "syllables": 1}, {"text": "dripping", "syllables": 2}]}
    wrong = {"title": "Rain", "verses": [{"text": "drip", "syllables": "one"}]}
    llmock.call_tool("final_output", wrong).call_tool("final_output", poem)
    _, data = await run(system, joker(output_type=Poem))
    assert data["payload"]["output"] == poem
    assert "'verses.0.syllables'" in tool_results(llmock.last_request.body)[0]


async def test_spec_A07_an_answer_in_text_does_not_end_the_run(system: System, llmock: LLMock) -> None:
    """Some models do not call the tool that they must call."""
    llmock.reply("I would rather not.").call_tool("final_output", JOKE)
    _, data = await run(system, joker())
    assert data["payload"]["output"] == JOKE and data["payload"]["turn"] == 2


async def test_spec_A07_other_calls_next_to_final_output_are_executed(system: System, llmock: LLMock) -> None:
    llmock.add(Reply(tool_calls=(ToolCall("search_web", {"query": "jokes"}), ToolCall("final_output", JOKE))))
    _, data = await run(system, joker())
    assert data["payload"]["output"] == JOKE
    calls = data["payload"]["messages"][1]["tool_calls"]
    answers = data["payload"]["messages"][2:]
    assert [answer["tool_call_id"] for answer in answers] == [call["id"] for call in calls]
    assert answers[0]["content"] == "Search results for: jokes"


async def test_spec_A07_in_the_last_turn_final_output_is_the_only_choice(system: System, llmock: LLMock) -> None:
    llmock.call_tool("search_web", {"query": "jokes"}).call_tool("final_output", JOKE)
    _, data = await run(system, joker(max_turns=2))
    assert data["status"] == "completed"
    assert [request.body["tool_choice"] for request in llmock.requests] == [
        "required",
        {"type": "function", "function": {"name": "final_output"}},
    ]


async def test_spec_A07_raw_arguments_do_not_apply_to_the_output(system: System, llmock: LLMock) -> None:
    llmock.call_tool("search_web", {"query": "jokes"}).call_tool("final_output", JOKE)
    _, data = await run(system, joker(parse_tool_args=False))
    assert data["payload"]["output"] == JOKE
    assert "{" in tool_results(llmock.last_request.body)[0], "the tool was given JSON text"


async def test_spec_A07_inline_the_output_is_an_instance(llmock: LLMock) -> None:
    llmock.call_tool("final_output", JOKE)
    completion = await joker().run_inline(AgentContext(query="Tell me a joke."))
    assert completion.output == Joke(**JOKE)
