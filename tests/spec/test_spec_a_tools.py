"""Chapter A of PROMISES.md: what tools return (A14), and how they are defined (A15). Real: Valkey, HTTP, the openai
client. Fake: the language model."""

from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import pytest
from llmock.pytest_plugin import LLMock
from pydantic import BaseModel

from factorial import Agent, AgentContext, FatalAgentError, function_tool, gpt_41
from tests.harness import System


class Colour(StrEnum):
    """A colour."""

    RED = "red"


class Found(BaseModel):
    """What was found."""

    title: str
    at: datetime


FOUND = Found(title="A book", at=datetime(2026, 1, 2, tzinfo=UTC))


async def run(system: System, agent: Agent) -> tuple[str, dict[str, Any]]:
    """Run one task of the agent. Returns its id, and what is stored of it."""
    await system.start(agent)
    task_id = await system.submit(agent)
    return task_id, await system.ended(task_id, 30)


async def published(system: System, task_id: str) -> list[Any]:
    """The results of the tools in the events."""
    return [
        event["data"]["result"]["output_data"]
        for event in await system.events(task_id)
        if event["event_type"] == "progress_update_tool_action_completed"
    ]


def shown(llmock: LLMock) -> list[str]:
    """What the model sees of the tools' results."""
    messages = llmock.last_request.body["messages"]
    return [message["content"] for message in messages if message["role"] == "tool"]


def offered(llmock: LLMock) -> list[list[str]]:
    """The tools that each request offers."""
    return [[tool["function"]["name"] for tool in request.body.get("tools", ())] for request in llmock.requests]


# -- A14


@pytest.mark.parametrize(
    ("value", "model_sees", "event_shows"),
    [
        ("as it is\n", "as it is\n", "as it is\n"),
        ({"a": [1, None]}, '{"a":[1,null]}', {"a": [1, None]}),
        (7, "7", 7),
        (None, "null", None),
        (Colour.RED, "red", "red"),
        (FOUND, '{"title":"A book","at":"2026-01-02T00:00:00Z"}', {"title": "A book", "at": "2026-01-02T00:00:00Z"}),
        (("3 rows", [{"id": 1}, {"id": 2}, {"id": 3}]), "3 rows", [{"id": 1}, {"id": 2}, {"id": 3}]),
        ((1, 2), "[1,2]", [1, 2]),
    ],
    ids=["text", "dict", "number", "none", "enum", "model", "shown and data", "a tuple without text"],
)
async def test_spec_A14_what_a_tool_returns(
    system: System, llmock: LLMock, value: Any, model_sees: str, event_shows: Any
) -> None:
    def search() -> Any:
        """Search."""
        return value

    llmock.call_tool("search").reply("Found.")
    task_id, _ = await run(system, Agent(name="a", tools=[search], model=gpt_41))
    assert shown(llmock) == [model_sees]
    assert await published(system, task_id) == [event_shows]


async def test_spec_A14_an_exception_is_shown_to_the_model_and_the_run_continues(
    system: System, llmock: LLMock
) -> None:
    def divide(a: int, b: int) -> str:
        """Divide."""
        return str(a / b)

    llmock.call_tool("divide", {"a": 1, "b": 0}).call_tool("divide", {"a": 1, "b": 2}).reply("A half.")
    task_id, data = await run(system, Agent(name="a", tools=[divide], model=gpt_41))
    assert data["payload"]["output"] == "A half."
    assert shown(llmock) == ["Error: ZeroDivisionError: division by zero", "0.5"]
    assert "task_failed" not in await system.types(task_id)


async def test_spec_A14_a_fatal_error_ends_the_run(system: System, llmock: LLMock) -> None:
    def transfer(amount: int) -> str:
        """Transfer money."""
        raise FatalAgentError("the account is closed")

    llmock.call_tool("transfer", {"amount": 5})
    task_id, data = await run(system, Agent(name="a", tools=[transfer], model=gpt_41))
    assert (data["status"], data["error"]) == ("failed", "the account is closed")
    assert len(llmock.requests) == 1
    assert await system.types(task_id) == ["run_enqueued", "run_started", "task_failed", "run_failed"]
    assert (await system.event(task_id, "progress_update_tool_action_failed"))["error"] == "the account is closed"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"a": 1}, "Error: the arguments of 'divide' are not valid: 'b' is missing"),
        ({"a": 1, "b": "two"}, "Error: the arguments of 'divide' are not valid: 'b': Input should be a valid integer"),
        ({"a": 1, "b": 2, "c": 3}, "Error: the arguments of 'divide' are not valid: 'c' is not a parameter"),
    ],
    ids=["missing", "of a wrong type", "unknown"],
)
async def test_spec_A14_wrong_arguments_are_shown_to_the_model(
    system: System, llmock: LLMock, arguments: dict[str, Any], complaint: str
) -> None:
    called: list[int] = []

    def divide(a: int, b: int) -> str:
        """Divide."""
        called.append(a)
        return str(a / b)

    llmock.call_tool("divide", arguments).call_tool("divide", {"a": 1, "b": 2}).reply("A half.")
    _, data = await run(system, Agent(name="a", tools=[divide], model=gpt_41))
    assert data["payload"]["output"] == "A half." and called == [1]
    assert shown(llmock)[0].startswith(complaint)


@pytest.mark.parametrize("kind", ["malformed_arguments", "unknown_tool"])
async def test_spec_A14_a_broken_tool_call_is_shown_to_the_model(system: System, llmock: LLMock, kind: str) -> None:
    def search(words: str) -> str:
        """Search."""
        return "found"

    llmock.break_tool_call(kind).call_tool("search", {"words": "x"}).call_tool("search", {"words": "x"}).reply("Done.")
    _, data = await run(system, Agent(name="a", tools=[search], model=gpt_41))
    assert data["payload"]["output"] == "Done."
    broken, good = shown(llmock)
    assert broken.startswith("Error: ") and good == "found"


async def test_spec_A14_plain_and_async_tools_run_alike(system: System, llmock: LLMock) -> None:
    async def fetch() -> str:
        """Fetch."""
        return "fetched"

    def read() -> str:
        """Read."""
        return "read"

    llmock.call_tool("fetch").call_tool("read").reply("Done.")
    await run(system, Agent(name="a", tools=[fetch, read], model=gpt_41))
    assert shown(llmock) == ["fetched", "read"]


# -- A15


async def test_spec_A15_the_model_gets_name_and_description(system: System, llmock: LLMock) -> None:
    @function_tool(name="web_search", description="Finds pages on the web")
    def search(words: str) -> str:
        """For people who read the code."""
        return f"pages about {words}"

    llmock.call_tool("web_search", {"words": "cats"}).reply("Found.")
    await run(system, Agent(name="a", tools=[search], model=gpt_41))
    described = llmock.requests[0].body["tools"][0]["function"]
    assert (described["name"], described["description"]) == ("web_search", "Finds pages on the web")
    assert shown(llmock) == ["pages about cats"]


async def test_spec_A15_bare_the_model_gets_the_name_and_docstring_of_the_function(
    system: System, llmock: LLMock
) -> None:
    @function_tool
    def search(words: str) -> str:
        """Search the web.

        Args:
            words: what to look for
        """
        return words

    llmock.reply("Nothing to look for.")
    await run(system, Agent(name="a", tools=[search], model=gpt_41))
    described = llmock.last_request.body["tools"][0]["function"]
    assert (described["name"], described["description"]) == ("search", "Search the web.")
    assert described["parameters"]["properties"]["words"]["description"] == "what to look for"


def tool_for(is_enabled: bool | Callable[[Any], bool]) -> Any:
    @function_tool(name="publish", is_enabled=is_enabled)
    def publish() -> str:
        """Publish the draft."""
        return "published"

    return publish


def write() -> str:
    """Write a draft."""
    return "written"


async def test_spec_A15_a_tool_may_be_enabled_by_the_context(system: System, llmock: LLMock) -> None:
    llmock.call_tool("write").call_tool("publish").reply("Done.")
    agent = Agent(name="a", tools=[write, tool_for(lambda ctx: ctx.turn > 0)], model=gpt_41)
    await run(system, agent)
    assert offered(llmock) == [["write"], ["write", "publish"], ["write", "publish"]]
    assert shown(llmock) == ["written", "published"]


async def test_spec_A15_a_tool_that_is_not_enabled_cannot_be_called(system: System, llmock: LLMock) -> None:
    """The model may know its name from an earlier turn, or guess it."""
    llmock.call_tool("publish").reply("Then not.")
    _, data = await run(system, Agent(name="a", tools=[write, tool_for(False)], model=gpt_41))
    assert data["payload"]["output"] == "Then not."
    assert shown(llmock) == ["Error: there is no tool 'publish'; the tools are: write"]


async def test_spec_A15_with_no_tool_enabled_none_is_offered(system: System, llmock: LLMock) -> None:
    """Settings for tools are not sent either, because providers would reject them."""
    llmock.reply("Nothing to do.")
    agent = Agent(name="a", tools=[tool_for(lambda ctx: isinstance(ctx, str))], model=gpt_41, max_turns=1)
    await run(system, agent)
    assert set(llmock.last_request.body) == {"model", "messages"}


async def test_spec_A15_what_a_tool_changes_decides_what_is_offered_next(system: System, llmock: LLMock) -> None:
    class Draft(AgentContext):
        is_checked: bool = False

    def check(agent_ctx: Draft) -> str:
        """Check the draft."""
        agent_ctx.is_checked = True
        return "checked"

    llmock.call_tool("check").call_tool("publish").reply("Done.")
    agent = Agent(
        name="a",
        tools=[check, tool_for(lambda ctx: ctx.is_checked)],
        model=gpt_41,
        context_class=Draft,
    )
    await system.start(agent)
    await system.ended(await system.submit(agent, Draft(query="publish it")), 30)
    assert offered(llmock) == [["check"], ["check", "publish"], ["check", "publish"]]
    assert "agent_ctx" not in str(llmock.requests[0].body["tools"])
