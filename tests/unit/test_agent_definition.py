"""The options of an agent, and the requests of its turns. Real: everything but the model, which plays a script."""

from typing import Any

import pytest
from pydantic import BaseModel

from factorial import (
    Agent,
    AgentContext,
    BaseAgent,
    FunctionToolActionResult,
    Model,
    ModelSettings,
    Provider,
    ResolvedModelSettings,
    TurnCompletion,
    claude_4_sonnet,
    fallback_models,
    function_tool,
    gpt_5,
    gpt_41,
)
from factorial.errors import ConfigError, ContextError, FatalAgentError, UnknownModelError
from factorial.models import ModelRequest
from factorial.testing import ScriptedModel, call, say


class Recording(ScriptedModel):
    """Plays its script, and records the requests."""

    requests: list[ModelRequest]

    def __init__(self, replies: Any, **options: Any) -> None:
        super().__init__(replies, **options)
        object.__setattr__(self, "requests", [])

    def transport(self) -> Any:
        played, requests = super().transport(), self.requests

        class Recorder:
            async def create(self, model: Any, request: ModelRequest, on_chunk: Any) -> Any:
                requests.append(request)
                return await played.create(model, request, on_chunk)

        return Recorder()


def tool(x: int = 0) -> str:
    """A tool."""
    return str(x)


# -- construction


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("weather", "weather"),
        ("WeatherAgent", "weather_agent"),
        ("Weather agent", "weather_agent"),
        ("HTTPBot", "http_bot"),
    ],
)
def test_names_are_normalised_for_queues_and_logs(given: str, name: str) -> None:
    assert Agent(name=given).name == name


def test_the_name_of_a_class_is_the_name_of_its_agents() -> None:
    class ResearchBot(Agent):
        pass

    assert ResearchBot().name == "research_bot"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"name": "über"}, "cannot name an agent"),
        ({"name": "x" * 65}, "cannot name an agent"),
        ({"model": 7}, "model=7: it is not a Model"),
        ({"max_turns": 0}, "max_turns=0: use None, or a whole number of at least 1"),
        ({"max_turns": "3"}, "max_turns='3'"),
        ({"request_timeout": 0}, "request_timeout=0: use seconds above 0"),
        ({"context_class": dict}, "must extend AgentContext"),
        ({"tools": ["tool"]}, "tool"),
        ({"tools": [tool, tool]}, "tool"),
    ],
)
def test_invalid_options_are_rejected_when_the_agent_is_made(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Agent(**{"name": "a"} | options)
    assert complaint in str(raised.value)


def test_the_error_about_an_unknown_model_names_the_nearest_one() -> None:
    with pytest.raises(UnknownModelError, match="did you mean 'gpt_41_mini'"):
        Agent(name="a", model="gpt_41_mni")


def test_a_tool_of_the_user_may_not_be_called_final_output() -> None:
    class Out(BaseModel):
        x: int

    @function_tool(name="final_output")
    def mine() -> str:
        """Mine."""
        return ""

    Agent(name="a", tools=[mine])
    with pytest.raises(ConfigError, match="give your own tool another name"):
        Agent(name="a", tools=[mine], output_type=Out)


def test_an_agent_with_its_own_context_class() -> None:
    class Mine(AgentContext):
        count: int = 0

    class Other(AgentContext):
        pass

    class MyAgent(BaseAgent[Mine]):
        def __init__(self) -> None:
            super().__init__(description="d", instructions="i", tools=[tool], context_class=Mine)

    agent = MyAgent()
    task = agent.create_task(owner_id="o", payload=Mine(query="q", count=2))
    assert (task.agent, task.owner_id, task.payload.count, task.status) == ("my_agent", "o", 2, "queued")
    with pytest.raises(ContextError, match="works on Mine, and the payload is an Other"):
        agent.create_task(owner_id="o", payload=Other(query="q"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot name an owner"):
        agent.create_task(owner_id="", payload=Mine(query="q"))


def test_check_ready_names_agent_model_and_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"agent 'a': no model was given, so it uses .*OPENAI_API_KEY"):
        Agent(name="a").check_ready()
    with pytest.raises(ConfigError, match=r"agent 'a': .*'claude_4_sonnet'|agent 'a': .*ANTHROPIC_API_KEY"):
        Agent(name="a", model=claude_4_sonnet).check_ready()
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    Agent(name="a", model=fallback_models(claude_4_sonnet, gpt_5, gpt_41)).check_ready()
    Agent(name="a", model=lambda ctx: gpt_5).check_ready()

    class Own(Agent):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            raise NotImplementedError

    monkeypatch.delenv("OPENAI_API_KEY")
    Own(name="own").check_ready()  # it does not use the model


# -- requests


async def test_nothing_is_sent_that_the_user_did_not_write() -> None:
    model = Recording([say("hi")])
    await Agent(name="a", description="Secretly helpful", model=model).run_inline(AgentContext(query="q"))
    [request] = model.requests
    assert list(request.messages) == [{"role": "user", "content": "q"}]
    assert list(request.tools) == []
    assert request.settings == ResolvedModelSettings()


async def test_instructions_may_depend_on_the_context() -> None:
    model = Recording([call("tool"), say("done")])
    agent = Agent(name="a", instructions=lambda ctx: f"Turn {ctx.turn}.", tools=[tool], model=model)
    await agent.run_inline(AgentContext(query="q"))
    assert [request.messages[0] for request in model.requests] == [
        {"role": "system", "content": "Turn 0."}, {"role": "system", "content": "Turn 1."},
    ]  # fmt: skip


async def test_the_model_may_depend_on_the_context() -> None:
    first, second = Recording([call("tool")], name="first"), Recording([say("x"), say("done")], name="second")
    agent = Agent(name="a", tools=[tool], model=lambda ctx: first if ctx.turn == 0 else second)
    assert (await agent.run_inline(AgentContext(query="q"))).output == "done"
    assert (len(first.requests), len(second.requests)) == (1, 1)


async def test_settings_are_values_or_functions_of_the_context() -> None:
    model = Recording([call("tool"), say("done")])
    settings = ModelSettings[AgentContext](
        temperature=lambda ctx: ctx.turn / 10, max_completion_tokens=99, tool_choice="auto", parallel_tool_calls=False
    )
    await Agent(name="a", tools=[tool], model=model, model_settings=settings).run_inline(AgentContext(query="q"))
    assert [request.settings.temperature for request in model.requests] == [0.0, 0.1]
    last = model.requests[-1].settings
    assert (last.max_completion_tokens, last.tool_choice, last.parallel_tool_calls) == (99, "auto", False)


async def test_without_tools_no_tool_choice_is_sent() -> None:
    model = Recording([say("done")])
    settings: ModelSettings[AgentContext] = ModelSettings(tool_choice="required", parallel_tool_calls=True)
    await Agent(name="a", model=model, model_settings=settings).run_inline(AgentContext(query="q"))
    assert model.requests[0].settings.tool_choice is None
    assert model.requests[0].settings.parallel_tool_calls is None


async def test_in_the_last_turn_the_model_has_to_answer() -> None:
    class Out(BaseModel):
        x: int

    model = Recording([call("tool"), say("done")])
    await Agent(name="a", tools=[tool], model=model, max_turns=2).run_inline(AgentContext(query="q"))
    assert [request.settings.tool_choice for request in model.requests] == [None, "none"]
    model = Recording([call("tool"), call("final_output", x=1)])
    await Agent(name="a", tools=[tool], model=model, max_turns=2, output_type=Out).run_inline(AgentContext(query="q"))
    assert [request.settings.tool_choice for request in model.requests] == [
        "required", {"type": "function", "function": {"name": "final_output"}},
    ]  # fmt: skip


async def test_a_tool_is_offered_when_it_is_enabled() -> None:
    @function_tool(is_enabled=lambda ctx: ctx.turn > 0)
    def late() -> str:
        """Late."""
        return "late"

    model = Recording([call("late"), call("late"), say("done")])
    agent = Agent(name="a", tools=[tool, late], model=model)
    completion = await agent.run_inline(AgentContext(query="q"))
    assert [[offered["function"]["name"] for offered in request.tools] for request in model.requests] == [
        ["tool"], ["tool", "late"], ["tool", "late"],
    ]  # fmt: skip
    results = [message["content"] for message in completion.context.messages if message["role"] == "tool"]
    assert results[0].startswith("Error: there is no tool 'late'") and results[1] == "late"


async def test_the_time_limit_of_a_request_and_streaming_are_passed_on() -> None:
    model = Recording([say("done")])
    await Agent(name="a", model=model, request_timeout=7.5, stream=True).run_inline(AgentContext(query="q"))
    assert (model.requests[0].timeout, model.requests[0].stream) == (7.5, True)
    assert Agent(name="a").request_timeout == 120.0


async def test_parse_tool_args_false_passes_the_raw_text() -> None:
    seen = []

    def raw(arguments: str) -> str:
        """Raw."""
        seen.append(arguments)
        return "ok"

    model = Recording([call("raw", a=1, b="x"), say("done")])
    await Agent(name="a", tools=[raw], model=model, parse_tool_args=False).run_inline(AgentContext(query="q"))
    assert seen == ['{"a":1,"b":"x"}']


async def test_the_next_model_is_asked_when_one_fails() -> None:
    from factorial.errors import ModelRefusedError

    def refuse(messages: Any) -> Any:
        raise ModelRefusedError("no")

    model = fallback_models(ScriptedModel(refuse, name="one"), ScriptedModel([say("from two")], name="two"))
    assert (await Agent(name="a", model=model).run_inline(AgentContext(query="q"))).output == "from two"


# -- overriding


async def test_tool_action_may_be_overridden_and_call_the_original() -> None:
    class Guarding(Agent):
        async def tool_action(self, tool_call: Any, agent_ctx: AgentContext) -> FunctionToolActionResult:
            result = await super().tool_action(tool_call, agent_ctx)
            return FunctionToolActionResult(tool_call_id=tool_call.id, output_str=f"[{result.output_str}]")

    agent = Guarding(name="g", tools=[tool], model=ScriptedModel([call("tool", x=3), say("done")]))
    completion = await agent.run_inline(AgentContext(query="q"))
    assert completion.context.messages[2]["content"] == "[3]"


@pytest.mark.parametrize(
    ("method", "complaint"),
    [
        ("run_turn", r"Wrong\.run_turn returned str: return a TurnCompletion"),
        ("completion", r"Wrong\.completion returned str: return a ChatCompletion"),
        ("tool_action", r"Wrong\.tool_action returned str: return a FunctionToolActionResult"),
    ],
)
async def test_an_override_that_returns_another_type_is_an_error(method: str, complaint: str) -> None:
    async def wrong(self: Any, *args: Any) -> str:
        return "wrong"

    agent = type("Wrong", (Agent,), {method: wrong})(
        name="w", tools=[tool], model=ScriptedModel([call("tool"), say("done")])
    )
    with pytest.raises(FatalAgentError, match=complaint):
        await agent.run_inline(AgentContext(query="q"))


async def test_run_turn_may_end_the_run_and_return_another_context() -> None:
    class Short(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            other = AgentContext(query="other", note="kept")  # type: ignore[call-arg]
            return TurnCompletion(is_done=True, context=other, output={"n": 1})

    completion = await Short(name="s").run_inline(AgentContext(query="q"))
    assert completion.output == {"n": 1}
    assert completion.context.query == "other" and completion.context.turn == 1


def test_a_model_that_is_not_in_the_catalogue_can_be_used() -> None:
    provider = Provider("local", "http://127.0.0.1:1/v1", api_key_env=None)
    model = Model("mine", provider, "mine-7b", 8192)
    agent = Agent(name="a", model=model)
    agent.check_ready()
    assert agent.resolve_model(AgentContext(query="q")) is model
