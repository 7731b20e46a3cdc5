"""Mistakes of users, and the messages about them: one line, raised at once, with the option and what to do.

Nothing is fake. Nothing is reached over the network, because each mistake is found before.
"""

import asyncio
import logging
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import TypedDict

from factorial import (
    Agent,
    AgentContext,
    ExecutionContext,
    ModelSettings,
    Orchestrator,
    deferred_result,
    forking_tool,
    function_tool,
)
from factorial.agent.lifecycle.waiting import encode_result
from factorial.cli.supervisor import main
from factorial.config import ObservabilityConfig, RedisConfig
from factorial.errors import ConfigError, ContextError, InactiveTaskError
from factorial.testing import ScriptedModel, call, say
from factorial.tools import FunctionTool


def search(query: str) -> str:
    """Search."""
    return query


def nothing() -> Any:
    """A function without parameters, for options whose functions are called with the context."""


def message_of(mistake: Callable[[], Any], kind: type[Exception] = ConfigError) -> str:
    """The message of the error that `mistake` raises."""
    with pytest.raises(kind) as raised:
        mistake()
    return str(raised.value)


# -- agents


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_settings": {"temperature": 1}}, "agent 'a': model_settings={'temperature': 1}: write ModelSettings("),
        ({"model_settings": {}}, "agent 'a': model_settings={}: write ModelSettings("),
        ({"instructions": nothing}, "give text, or a function of the agent's context, as in lambda ctx: ..."),
        ({"instructions": lambda ctx, more: ""}, "give text, or a function of the agent's context"),
        ({"instructions": 5}, "agent 'a': instructions=5: give text, or a function of the agent's context"),
        ({"description": 5}, "agent 'a': description=5: give text"),
        ({"model": nothing}, "or give a function of the agent's context, as in lambda ctx: ..."),
        ({"model": 7}, "agent 'a': model=7: it is not a Model: import one from factorial, or give a function"),
        ({"tools": 5}, "agent 'a': tools=5: give a list of functions, as in tools=[get_weather]"),
        ({"tools": search}, ": give a list of functions, as in tools=[get_weather]"),
        ({"tools": function_tool(search)}, ": give a list of functions, as in tools=[get_weather]"),
        ({"tools": "search"}, "agent 'a': tools='search': give a list of functions"),
        ({"tools": {"search": search}}, ": give a list of functions"),
        ({"request_timeout": "60"}, "agent 'a': request_timeout='60': use seconds above 0"),
        ({"request_timeout": None}, "agent 'a': request_timeout=None: use seconds above 0"),
        ({"request_timeout": float("nan")}, "agent 'a': request_timeout=nan: use seconds above 0"),
        ({"name": 5}, "name=5 cannot name an agent: use 1 to 64 letters, digits, '_' or '-'"),
        ({"output_type": {"a": 1}}, "agent 'a': output_type={'a': 1} is not a type: give a pydantic model, as in"),
        ({"output_type": "Answer"}, "agent 'a': output_type='Answer' is not a type: give a pydantic model"),
        ({"output_type": [int]}, "agent 'a': output_type=[<class 'int'>] is not a type: give a pydantic model"),
        ({"output_type": 5}, "agent 'a': output_type=5 is not a type: give a pydantic model"),
        ({"stream": "no"}, "agent 'a': stream='no': use True or False"),
        ({"parse_tool_args": 1}, "agent 'a': parse_tool_args=1: use True or False"),
        ({"max_turns": True}, "agent 'a': max_turns=True: use None, or a whole number of at least 1"),
        ({"context_class": AgentContext(query="q")}, "it must extend AgentContext"),
        ({"on_run_start": 5}, "on_run_start=5 must be a function of 2 arguments (agent_ctx, execution_ctx): see"),
        ({"on_turn_end": nothing}, "must be a function of 3 arguments (agent_ctx, execution_ctx, completion): see"),
        ({"on_pending_tool_call": nothing}, "(agent_ctx, execution_ctx, tool_call)"),
    ],
)
def test_an_agent_with_an_invalid_option(options: dict[str, Any], message: str) -> None:
    assert message in message_of(lambda: Agent(**{"name": "a"} | options))


@dataclass
class Point:
    x: int


class Row(TypedDict):
    x: int


@pytest.mark.parametrize(
    "options",
    [
        {"instructions": "Be brief, {.query}.".format},  # a builtin: it has no signature to look at
        {"instructions": lambda ctx: ""},
        {"instructions": lambda ctx, execution_ctx: ""},
        {"instructions": lambda *args: ""},
        {"instructions": partial(lambda tone, ctx: tone, "kind")},
        {"model": operator.attrgetter("model")},
        {"tools": (search,)},
        {"tools": (tool for tool in [search])},
        {"output_type": dict},
        {"output_type": Point},
        {"output_type": Row},
        {"output_type": list[str]},
        {"output_type": int | None},
        {"request_timeout": 5},
        {"on_run_start": lambda *args: None},
    ],
)
def test_an_agent_with_unusual_valid_options(options: dict[str, Any]) -> None:
    assert Agent(**{"name": "a"} | options).name == "a"


async def test_instructions_may_be_a_builtin() -> None:
    agent = Agent(name="a", instructions="Be brief, {.query}.".format, model=ScriptedModel([say("hi")]))
    assert agent.resolve_instructions(AgentContext(query="Ann")) == "Be brief, Ann."
    assert (await agent.run_inline(AgentContext(query="Ann"))).output == "hi"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": nothing}, "temperature=<function nothing"),
        ({"max_completion_tokens": nothing}, "give it one parameter, as in lambda ctx: ..."),
        ({"tool_choice": lambda a, b: "auto"}, "the function is called with the agent's context"),
        ({"parallel_tool_calls": nothing}, "ModelSettings: parallel_tool_calls="),
    ],
)
def test_model_settings_that_are_functions_of_something_else(options: dict[str, Any], message: str) -> None:
    assert message in message_of(lambda: ModelSettings(**options))


async def test_run_inline_wants_a_context() -> None:
    with pytest.raises(ContextError) as raised:
        await Agent(name="a", model=ScriptedModel([])).run_inline("hello")  # type: ignore[arg-type]
    assert str(raised.value) == "agent 'a' works on AgentContext, and the payload is a str"


# -- tools


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"is_enabled": "yes"}, "is_enabled='yes': use True, False, or a function of the agent's context"),
        ({"is_enabled": nothing}, ": use True, False, or a function of the agent's context, as in lambda ctx: ..."),
        ({"name": 5}, "5 cannot be the name of a tool"),
        ({"description": 5}, "description=5: give text"),
    ],
)
def test_a_tool_with_an_invalid_option(options: dict[str, Any], message: str) -> None:
    complaint = message_of(lambda: function_tool(**options)(search))
    assert complaint.startswith("tool 'search' (") and message in complaint
    by_hand: dict[str, Any] = {"name": "search", "description": "", "params_json_schema": {}, "on_invoke_tool": search}
    assert message in message_of(lambda: FunctionTool(**by_hand | options))


def ask(question: str) -> None:
    """Ask."""


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: deferred_result(ask), "deferred_result: write @deferred_result(timeout=60), with parentheses"),  # type: ignore[arg-type]
        (lambda: forking_tool(ask), "forking_tool: write @forking_tool(timeout=60), with parentheses"),  # type: ignore[arg-type]
        (lambda: deferred_result(60)(Point), "deferred_result marks functions, and <class"),
        (lambda: forking_tool(60)(Point), "forking_tool marks functions, and <class"),
    ],
)
def test_marks_of_deferred_tools(mistake: Callable[[], Any], message: str) -> None:
    assert message in message_of(mistake)


@pytest.mark.parametrize("above", [deferred_result, forking_tool])
def test_a_tool_awaits_children_or_a_result_but_not_both(above: Any) -> None:
    below: Any = forking_tool if above is deferred_result else deferred_result

    def research(topic: str) -> None:
        """Research."""

    complaint = message_of(lambda: above(timeout=60)(below(timeout=60)(research)))
    assert complaint.startswith("tool 'research' (")
    assert complaint.endswith(
        "is marked as deferred and as forking: a tool awaits children or a result from outside; keep one of the "
        "decorators"
    )


async def test_a_forking_tool_that_returns_something_else_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @forking_tool(timeout=60)
    def research(topic: str) -> str:
        """Research."""
        return "done: " + topic

    agent = Agent(name="a", tools=[research], model=ScriptedModel([call("research", topic="cats"), say("sorry")]))
    with caplog.at_level(logging.WARNING, "factorial"):
        ended = await agent.run_inline(AgentContext(query="q"))
    [line] = [record for record in caplog.records if record.name == "factorial.tools.deferred"]
    assert "the forking tool 'research' returned 'done: cats': return the id or the batch that" in line.getMessage()
    assert line.agent == "a"  # type: ignore[attr-defined]
    assert "the forking tool 'research' returned" in ended.context.messages[2]["content"]


@pytest.mark.parametrize(
    ("spawn", "message"),
    [
        (lambda ctx, agent: ctx.spawn_child_tasks("ch", []), "spawn_child_tasks: agent='ch': give the agent itself"),
        (lambda ctx, agent: ctx.spawn_child_task("ch", None), "spawn_child_task: agent='ch': give the agent itself"),
        (
            lambda ctx, agent: ctx.spawn_child_tasks(agent, AgentContext(query="q")),
            "spawn_child_tasks: payloads are an AgentContext: give a list of contexts, or use spawn_child_task",
        ),
        (lambda ctx, agent: ctx.spawn_child_tasks(agent, iter(())), "give a list of contexts"),
    ],
)
async def test_what_cannot_be_spawned(spawn: Any, message: str) -> None:
    async def research(execution_ctx: ExecutionContext) -> str:
        """Research."""
        await spawn(execution_ctx, agent)
        return "spawned"

    agent = Agent(name="a", tools=[research], model=ScriptedModel([call("research"), say("done")]))
    ended = await agent.run_inline(AgentContext(query="q"))
    assert message in ended.context.messages[2]["content"]


# -- the orchestrator


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"events_config": 5}, "Orchestrator: events_config=5: give an EventsConfig"),
        ({"supervisor_config": {}}, "Orchestrator: supervisor_config={}: give a SupervisorConfig"),
        ({"metrics_config": True}, "Orchestrator: metrics_config=True: give a MetricsTimelineConfig"),
        ({"observability_config": "on"}, "Orchestrator: observability_config='on': give an ObservabilityConfig"),
        ({"logging_config": "debug"}, "Orchestrator: logging_config='debug': give a LoggingConfig"),
        ({"openai_api_key": 5551234}, "Orchestrator: openai_api_key is of type int: give the key as text"),
        ({"xai_api_key": b"5551234"}, "Orchestrator: xai_api_key is of type bytes: give the key as text"),
        ({"redis_max_connections": "9"}, "redis_max_connections='9': use a whole number of at least 1"),
    ],
)
def test_an_orchestrator_with_an_invalid_option(options: dict[str, Any], message: str) -> None:
    complaint = message_of(lambda: Orchestrator(**options))
    assert message in complaint
    assert "5551234" not in complaint


def test_a_password_in_the_wrong_place_is_not_shown() -> None:
    misplaced: Any = RedisConfig(url="redis://:geheim123@db")
    assert "geheim123" not in message_of(lambda: Orchestrator(events_config=misplaced))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agent_worker_config": 5}, "register_runner: agent_worker_config=5: give an AgentWorkerConfig"),
        ({"maintenance_worker_config": 0}, "maintenance_worker_config=0: give a MaintenanceWorkerConfig"),
        ({"supervisor_config": "x"}, "register_runner: supervisor_config='x': give a RunnerSupervisorConfig"),
        ({"health_config": []}, "register_runner: health_config=[]: give a HealthConfig"),
        ({"restart": "always"}, "register_runner: restart='always': use one of permanent, transient, temporary"),
    ],
)
def test_a_runner_with_an_invalid_option_is_not_registered(options: dict[str, Any], message: str) -> None:
    orchestrator = Orchestrator()
    assert message in message_of(lambda: orchestrator.register_runner(Agent(name="a"), **options))
    assert orchestrator.agents == []


async def test_a_system_is_not_run_within_an_event_loop() -> None:
    orchestrator = Orchestrator()
    orchestrator.register_runner(Agent(name="a", model=ScriptedModel([])))
    assert "orchestrator.run() blocks, and an event loop is running here" in message_of(orchestrator.run)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda it: anext(it.subscribe_to_updates("o", after=5)), "after=5 is not an event id: use the 'id' of an"),
        (lambda it: it.get_metrics(5), "get_metrics(agent=5): give an agent, or the name of one"),
        (lambda it: it.get_metrics(timeline=5), "get_metrics: timeline=5: give a MetricsTimelineConfig"),
        (lambda it: it.get_metrics(timeline=0), "get_metrics: timeline=0: give a MetricsTimelineConfig"),
    ],
)
def test_questions_that_cannot_be_answered(ask: Callable[[Any], Any], message: str) -> None:
    async def asked() -> None:
        await ask(Orchestrator(redis_url="redis://127.0.0.1:1"))

    assert message in message_of(lambda: asyncio.run(asked()))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            object(),
            "the result of tool call 'c1' cannot be stored: a value of type object, which is neither text nor JSON",
        ),
        (("shown", object()), "the result of tool call 'c1' cannot be stored as JSON"),
    ],
)
def test_a_result_that_cannot_be_stored(value: Any, message: str) -> None:
    assert message in message_of(lambda: encode_result("c1", value), ContextError)


def test_the_error_about_an_ended_task_says_what_is_not_possible() -> None:
    said = str(InactiveTaskError("t1", "completed"))
    assert said == "task 't1' has ended (completed): it cannot be steered or cancelled any more"


@pytest.mark.parametrize("origins", ["https://intranet.example", 5, ["https://intranet.example", 5]])
def test_a_list_of_strings_is_not_called_a_list_of_tables(origins: Any) -> None:
    complaint = message_of(lambda: ObservabilityConfig(cors_origins=origins))
    assert complaint == 'ObservabilityConfig: cors_origins: give a list of strings, such as ["...", "..."]'


# -- the command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sttus"], "factorial: there is no verb 'sttus'; did you mean 'status'?"),
        (["sttus", "--config", "c.toml"], "factorial: there is no verb 'sttus'; did you mean 'status'?"),
        (["restrat", "planner"], "factorial: there is no verb 'restrat'; did you mean 'restart'?"),
        (["stops.toml"], "stops.toml: there is no such file"),
    ],
)
def test_a_verb_with_a_slip_in_it(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--check"] if words[0].endswith(".toml") else words) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_file_may_have_almost_the_name_of_a_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sttus").write_text("[redis]\n")
    assert main(["sttus", "--check"]) == 2
    assert "there is no [[runner]]" in capsys.readouterr().err
