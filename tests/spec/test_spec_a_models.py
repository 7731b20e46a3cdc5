"""Chapter A of PROMISES.md: models and their settings (A02 to A06). Real: Valkey, HTTP, the openai client. Fake: the
language models behind the server. Providers other than OpenAI are the catalogue's own, with the server's address."""

from dataclasses import replace
from typing import Any

import pytest
from llmock.pytest_plugin import LLMock

from factorial import (
    Agent,
    AgentContext,
    Model,
    ModelSettings,
    Provider,
    claude_4_sonnet,
    fallback_models,
    gpt_5,
    gpt_5_mini,
    gpt_41,
    gpt_41_mini,
    gpt_41_nano,
)
from tests.harness import System, quick


def plan(steps: int) -> str:
    """Make a plan."""
    return f"{steps} steps"


def served(model: Model, llmock: LLMock) -> Model:
    """`model`, with the test's server as its provider."""
    return replace(model, provider=replace(model.provider, base_url=llmock.base_url("openai")))


async def run(system: System, agent: Agent, **worker: Any) -> dict[str, Any]:
    """Run one task of the agent. Returns what is stored of it."""
    await system.start(agent, quick(**worker))
    return await system.ended(await system.submit(agent), 30)


def asked(llmock: LLMock) -> list[str | None]:
    """The models that were called, in order."""
    return [request.model for request in llmock.requests]


# -- A02: by name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (gpt_5, "gpt-5"),
        (gpt_5_mini, "gpt-5-mini"),
        (gpt_41, "gpt-4.1"),
        (gpt_41_mini, "gpt-4.1-mini"),
        (gpt_41_nano, "gpt-4.1-nano"),
        (claude_4_sonnet, "claude-sonnet-4-20250514"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
async def test_spec_A02_a_model_of_the_catalogue_is_called_by_its_name_at_the_provider(
    system: System, llmock: LLMock, model: Model, name: str
) -> None:
    data = await run(system, Agent(name="a", model=served(model, llmock)))
    assert (data["status"], asked(llmock)) == ("completed", [name])


@pytest.mark.parametrize("name", ["gpt_41", "gpt-4.1"])
async def test_spec_A02_a_model_may_be_given_by_either_of_its_names(system: System, llmock: LLMock, name: str) -> None:
    await run(system, Agent(name="a", model=name))
    assert asked(llmock) == ["gpt-4.1"]


async def test_spec_A02_any_other_model_is_defined_in_one_line(system: System, llmock: LLMock) -> None:
    local = Provider(name="local", base_url=llmock.base_url("openai"), api_key_env=None)
    await run(system, Agent(name="a", model=Model(name="qwen", provider=local, provider_model_id="qwen3-8b")))
    assert asked(llmock) == ["qwen3-8b"]


# -- A03: by the context


async def test_spec_A03_the_model_is_chosen_again_in_each_turn(system: System, llmock: LLMock) -> None:
    """The document's example."""

    def choose_model(agent_ctx: AgentContext) -> Model:
        return gpt_41 if agent_ctx.turn == 0 else gpt_41_mini

    llmock.call_tool("plan", {"steps": 2}).call_tool("plan", {"steps": 3}).reply("Planned.")
    data = await run(system, Agent(instructions="You are helpful", model=choose_model, tools=[plan]))
    assert data["payload"]["output"] == "Planned."
    assert asked(llmock) == ["gpt-4.1", "gpt-4.1-mini", "gpt-4.1-mini"]


# -- A04: several, in order


async def test_spec_A04_the_next_model_is_tried_when_one_errors(system: System, llmock: LLMock) -> None:
    """The document's example."""
    llmock.fail(500, model="claude*").fail(503, model="gpt-5").reply("From the third.")
    agent = Agent(
        instructions="You are a helpful assistant",
        model=fallback_models(served(claude_4_sonnet, llmock), gpt_5, gpt_41),
    )
    data = await run(system, agent)
    assert data["payload"]["output"] == "From the third."
    assert asked(llmock) == ["claude-sonnet-4-20250514", "gpt-5", "gpt-4.1"]


async def test_spec_A04_while_the_first_model_answers_no_other_is_called(system: System, llmock: LLMock) -> None:
    llmock.call_tool("plan", {"steps": 2}).reply("Planned.")
    await run(system, Agent(name="a", model=fallback_models(gpt_5, gpt_41), tools=[plan]))
    assert asked(llmock) == ["gpt-5", "gpt-5"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 429, 500, 503])
async def test_spec_A04_whatever_the_error_the_next_model_gets_the_same_request(
    system: System, llmock: LLMock, status: int
) -> None:
    llmock.fail(status, model="gpt-5").reply("From the second.")
    agent = Agent(name="a", instructions="Hello", model=fallback_models(gpt_5, gpt_41), tools=[plan])
    data = await run(system, agent)
    assert data["payload"]["output"] == "From the second."
    first, second = (request.body for request in llmock.requests)
    assert second == first | {"model": "gpt-4.1"}


async def test_spec_A04_a_missing_key_is_an_error_like_others(
    system: System, llmock: LLMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    llmock.reply("From the second.")
    data = await run(system, Agent(name="a", model=fallback_models(claude_4_sonnet, gpt_5, gpt_41)))
    assert data["payload"]["output"] == "From the second."
    assert asked(llmock) == ["gpt-5"]


async def test_spec_A04_a_missing_server_is_an_error_like_others(system: System, llmock: LLMock) -> None:
    away = Model(name="away", provider=Provider(name="away", base_url="http://127.0.0.1:9/v1", api_key_env=None))
    llmock.reply("From the second.")
    data = await run(system, Agent(name="a", model=fallback_models(away, gpt_41)))
    assert data["payload"]["output"] == "From the second."


async def test_spec_A04_when_all_models_refuse_the_run_fails_and_names_them(system: System, llmock: LLMock) -> None:
    llmock.fail(401, model="gpt-5", times=None).fail(404, model="gpt-4.1", times=None)
    data = await run(system, Agent(name="a", model=fallback_models(gpt_5, gpt_41)))
    assert data["status"] == "failed"
    assert "all 2 models failed" in data["error"]
    assert "gpt-5 at openai refuses the request (HTTP 401)" in data["error"]
    assert "gpt-4.1 at openai refuses the request (HTTP 404)" in data["error"]
    assert asked(llmock) == ["gpt-5", "gpt-4.1"], "what is refused is not asked again"


async def test_spec_A04_a_model_that_may_recover_is_asked_again_when_the_others_refuse(
    system: System, llmock: LLMock
) -> None:
    llmock.fail(503, model="gpt-5").fail(400, model="gpt-4.1", times=None).reply("Back again.")
    data = await run(system, Agent(name="a", model=fallback_models(gpt_5, gpt_41)))
    assert data["payload"]["output"] == "Back again."
    assert asked(llmock) == ["gpt-5", "gpt-4.1", "gpt-5"]


# -- A05, A06: settings


async def test_spec_A05_settings_are_sent(system: System, llmock: LLMock) -> None:
    """The document's example."""
    agent = Agent(
        description="Creative Writer",
        instructions="You write creative stories",
        model_settings=ModelSettings[AgentContext](
            temperature=0.8,
            max_completion_tokens=1000,
            tool_choice="auto",
            parallel_tool_calls=True,
        ),
        tools=[plan],
        model=gpt_41,
    )
    llmock.reply("Once upon a time.")
    await run(system, agent)
    body = llmock.last_request.body
    assert {name: body[name] for name in body if name not in ("model", "messages", "tools")} == {
        "temperature": 0.8,
        "max_completion_tokens": 1000,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
    }


async def test_spec_A05_what_is_not_set_is_not_sent(system: System, llmock: LLMock) -> None:
    llmock.reply("Hello.")
    await run(system, Agent(name="a", model=gpt_41, tools=[plan], model_settings=ModelSettings(temperature=0.0)))
    assert set(llmock.last_request.body) == {"model", "messages", "tools", "temperature"}


async def test_spec_A06_settings_may_be_functions_of_the_context(system: System, llmock: LLMock) -> None:
    """The document's example, ended by `max_turns`."""
    agent = Agent(
        description="Adaptive Assistant",
        instructions="You adapt your behavior based on conversation progress",
        model_settings=ModelSettings(
            temperature=lambda ctx: 0 if ctx.turn == 0 else 1,
            tool_choice=lambda ctx: (
                {
                    "type": "function",
                    "function": {"name": "plan"},
                }
                if ctx.turn == 0
                else "required"
            ),
            max_completion_tokens=lambda ctx: 100 * (ctx.turn + 1),
            parallel_tool_calls=lambda ctx: None if ctx.turn == 0 else False,
        ),
        tools=[plan],
        model=gpt_41,
        max_turns=3,
    )
    llmock.call_tool("plan", {"steps": 2}).call_tool("plan", {"steps": 3}).reply("Planned.")
    data = await run(system, agent)
    assert data["payload"]["output"] == "Planned."
    names = ("temperature", "tool_choice", "max_completion_tokens", "parallel_tool_calls")
    assert [[request.body.get(name) for name in names] for request in llmock.requests] == [
        [0, {"type": "function", "function": {"name": "plan"}}, 100, None],
        [1, "required", 200, False],
        [1, "none", 300, False],
    ]


async def test_spec_A06_a_function_that_returns_an_invalid_value_fails_the_run_and_is_named(
    system: System, llmock: LLMock
) -> None:
    agent = Agent(name="a", model=gpt_41, model_settings=ModelSettings(temperature=lambda ctx: 9))
    data = await run(system, agent)
    assert data["status"] == "failed" and "temperature=9" in data["error"]
    assert not llmock.requests
