"""The snippets of the documents that specify Factorial, run as they are written there.

`snippets.py` lists the slips that are corrected. Apart from that only hosts, ports and keys are replaced; the names
that a snippet assumes (`my_agent`, `search_web`, `app`) come from its test.

Real: Valkey, the workers' actors (and, for `orchestrator.run()`, their processes), uvicorn and WebSockets, HTTP to the
model. Fake: the language model.
"""

import asyncio
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from llmock.pytest_plugin import LLMock
from openai.types.chat import ChatCompletion, ChatCompletionMessageToolCall
from pydantic import BaseModel
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

import factorial
from factorial import (
    Agent,
    AgentContext,
    AgentEvent,
    BaseAgent,
    ExecutionContext,
    FunctionToolActionResult,
    Orchestrator,
    TurnCompletion,
    claude_4_sonnet,
    gpt_41,
)
from factorial.events import CATALOGUE
from tests.harness import System
from tests.spec.documents import ROOT, Snippet, execute, fences, looks_like_code, places, source, text
from tests.spec.snippets import AGENTS, CONTEXT, EVENTS, INTRODUCTION, ORCHESTRATOR, TABLES
from tests.spec.web import hear, post, served, socket
from tests.support import wait_until
from tests.valkey import ValkeyServer

Names = dict[str, Any]


# -- none is forgotten


@pytest.mark.parametrize("document", ["introduction.md", "orchestrator.md", "agents.md"])
def test_every_fenced_block_is_in_its_table(document: str) -> None:
    listed = [example.fence for example in TABLES[document].values()]
    assert listed == list(range(1, len(fences(document)) + 1))
    for example in TABLES[document].values():
        language, _ = fences(document)[example.fence - 1]
        assert language == ("python" if isinstance(example, Snippet) else "bash")


@pytest.mark.parametrize("document", ["context.txt", "events.txt"])
def test_every_line_that_looks_like_code_is_in_a_snippet(document: str) -> None:
    lines = text(document).splitlines()
    covered = {
        number for first, last in places(document, list(TABLES[document].values())) for number in range(first, last + 1)
    }
    assert [line for number, line in enumerate(lines) if number not in covered and looks_like_code(line.strip())] == []
    assert len(covered) > 40


def test_every_snippet_is_run_here() -> None:
    tests = "".join(inspect.getsource(value) for name, value in globals().items() if name.startswith("test_spec_"))
    names = {name for table in TABLES.values() for name in table if name not in CATALOGUE}
    assert [name for name in sorted(names) if f'"{name}"' not in tests] == []


# -- what they run on


@pytest.fixture
async def system(own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch, llmock: LLMock) -> AsyncIterator[System]:
    """A server of its own, since the snippets name no namespace; `Orchestrator()` finds it by the environment."""
    own_valkey.start()
    monkeypatch.setenv("REDIS_URL", own_valkey.url)
    system = System(own_valkey.url, "factorial")
    yield system
    await system.close()


@pytest.fixture
def elsewhere(own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Replaces hosts, ports and keys."""
    monkeypatch.setenv("OPENAI_API_KEY", "set by the test, and put back after it")

    def replace(code: str) -> str:
        for theirs, ours in (
            ('redis_host="localhost"', 'redis_host="127.0.0.1"'),
            ("redis_port=6379", f"redis_port={own_valkey.port}"),
            ('"sk-..."', '"llmock-test-key"'),
            ('host="0.0.0.0"', 'host="127.0.0.1"'),
        ):
            code = code.replace(theirs, ours)
        return code

    return replace


def search_web(query: str) -> str:
    """Search the web for information"""
    return f"Search results for: {query}"


async def answer(system: System, agent: BaseAgent[Any], context: AgentContext | str = "question") -> Any:
    """Have a process of `agent` do a task, and give its output."""
    process = await system.start(agent)
    data = await system.ended(await system.submit(agent, context), 30)
    await process.drain()
    assert data["status"] == "completed", data["error"]
    return data["payload"]["output"]


def script(folder: Path, code: str) -> list[str]:
    """The command that runs `code` as a program, without Redis."""
    (folder / "main.py").write_text(code, encoding="utf-8")
    return [sys.executable, str(folder / "main.py")]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "PYTHONDONTWRITEBYTECODE": "1"}


def start(folder: Path, code: str, stderr: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(script(folder, code), cwd=folder, env=environment(folder), stderr=stderr)


def run(folder: Path, code: str) -> str:
    """What the program prints."""
    done = subprocess.run(
        script(folder, code), cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- introduction


async def test_spec_I02_to_I06_the_quick_example(
    system: System, llmock: LLMock, capsys: pytest.CaptureFixture[str]
) -> None:
    llmock.call_tool("get_weather", {"city": "San Francisco"}).reply("It is sunny.")
    names: Names = {}
    example = asyncio.create_task(execute(source(INTRODUCTION, "quick example"), names))
    await wait_until(lambda: "task" in names, message="the snippet has made its task")
    await system.start(names["weather_agent"])  # what `orchestrator.run()` does elsewhere
    await asyncio.wait_for(example, 30)
    assert capsys.readouterr().out == "Result: It is sunny.\n"
    [_, call] = llmock.requests
    assert "sunny and 72" in call.body["messages"][-1]["content"]


def test_spec_I01_the_installation() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    command = source(INTRODUCTION, "installation").strip()
    assert command == "pip install " + re.search(r'^name = "(.*)"$', project, re.MULTILINE)[1]  # type: ignore[index]


# -- orchestrator


async def test_spec_O01_to_O03_the_basic_setup_runs_until_sigterm(
    system: System, elsewhere: Callable[[str], str], llmock: LLMock, tmp_path: Path
) -> None:
    llmock.reply("Done.")
    (tmp_path / "my_agents.py").write_text(
        "from factorial import Agent, gpt_41\nmy_agent = Agent(name='my_agent', model=gpt_41)\n"
    )
    code = "from my_agents import my_agent\n" + elsewhere(source(ORCHESTRATOR, "basic setup"))
    log = tmp_path / "log"
    with log.open("w") as stderr:
        program = start(tmp_path, code, stderr)
    try:
        task_id = await system.submit(Agent(name="my_agent"))
        data = await system.ended(task_id, 60)
        assert data["payload"]["output"] == "Done.", log.read_text()
        program.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(program.wait, 60) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        program.kill()
        program.wait()


async def test_spec_O01_the_redis_configuration(
    system: System, elsewhere: Callable[[str], str], llmock: LLMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://192.0.2.1:1/")  # nobody listens there
    agent = Agent(model=gpt_41)
    names = await execute(elsewhere(source(ORCHESTRATOR, "redis configuration")), {"Orchestrator": Orchestrator})
    task = await names["orchestrator"].enqueue_task(agent, owner_id="owner", payload=AgentContext(query="x"))
    assert await system.orchestrator.get_task_status(task.id) == "queued"
    await names["orchestrator"].close()


async def test_spec_O04_O05_the_configurations_of_the_workers(system: System, llmock: LLMock) -> None:
    worker = (await execute(source(ORCHESTRATOR, "worker configuration"), {}))["config"]
    maintenance = (await execute(source(ORCHESTRATOR, "maintenance worker configuration"), {}))["config"]
    assert (worker.workers, worker.batch_size, worker.max_retries) == (10, 25, 5)
    assert (worker.heartbeat_interval, worker.turn_timeout) == (5, 120)
    ttl = maintenance.task_ttl
    assert (maintenance.interval, maintenance.workers) == (10, 1)
    assert (ttl.completed_ttl, ttl.failed_ttl, ttl.cancelled_ttl) == (3600, 86400, 1800)
    llmock.reply("Done.")
    agent = Agent(model=gpt_41)
    await system.start(agent, worker, maintenance)
    assert (await system.ended(await system.submit(agent)))["payload"]["output"] == "Done."


async def test_spec_O06_to_O08_enqueue_look_and_get_the_result(
    system: System, llmock: LLMock, capsys: pytest.CaptureFixture[str]
) -> None:
    """One snippet after the other, as a reader of the document would run them."""
    llmock.reply("It grows.")
    names = await execute(source(ORCHESTRATOR, "enqueue tasks"), {})
    status = source(ORCHESTRATOR, "check task status")
    await execute(status, names)
    assert capsys.readouterr().out == "Status: queued\n"
    await system.start(names["agent"])
    await system.ended(names["task_id"])
    await execute(status, names)
    assert capsys.readouterr().out == "Status: completed\n"
    await execute(source(ORCHESTRATOR, "get task data"), names)
    assert re.match(r"Data: {'id': '\w+', .*'output': 'It grows.'", capsys.readouterr().out)
    await execute(source(ORCHESTRATOR, "get task result"), names)
    assert capsys.readouterr().out == "Result: It grows.\n"


async def test_spec_O09_cancel(system: System) -> None:
    task_id = await system.submit(Agent(model=gpt_41))
    await execute(
        source(ORCHESTRATOR, "cancel tasks"),
        {"asyncio": asyncio, "orchestrator": Orchestrator(), "task_id": task_id},
    )
    assert await system.orchestrator.get_task_status(task_id) == "cancelled"


async def test_spec_O10_steer(system: System, llmock: LLMock) -> None:
    llmock.reply("Profits grow.")
    agent = Agent(model=gpt_41)
    task_id = await system.submit(agent, "Analyze this data")
    await execute(
        source(ORCHESTRATOR, "steer tasks"),
        {"asyncio": asyncio, "orchestrator": Orchestrator(), "task_id": task_id},
    )
    await system.start(agent)
    await system.ended(task_id)
    assert [one["content"] for one in llmock.last_request.body["messages"]] == [
        "Analyze this data", "Please focus on the financial aspects",
    ]  # fmt: skip


async def test_spec_O11_O12_the_configurations_of_dashboard_and_metrics(
    system: System, elsewhere: Callable[[str], str]
) -> None:
    """What the dashboard's page shows is not asked here."""
    names = await execute(elsewhere(source(ORCHESTRATOR, "dashboard")), {})
    assert await names["orchestrator"].get_task_data("x") is None
    await names["orchestrator"].close()
    config = (await execute(source(ORCHESTRATOR, "metrics"), {}))["config"]
    assert (config.timeline_duration, config.bucket_size, config.retention_multiplier) == (3600, "minutes", 2.0)
    async with Orchestrator(metrics_config=config) as orchestrator:
        assert await orchestrator.get_task_data("x") is None


def test_spec_O13_run_inline(llmock: LLMock, tmp_path: Path) -> None:
    llmock.reply("It is about agents.")
    assert run(tmp_path, source(ORCHESTRATOR, "run inline")) == "It is about agents.\n"
    assert [one["content"] for one in llmock.last_request.body["messages"]] == [
        "You are a helpful assistant.", "Summarize README.md",
    ]  # fmt: skip


CODING_TOOLS = """
import asyncio
import json
from factorial import Agent, AgentContext

def read(file_path: str) -> str:
    "Read a file"
    return "app = FastAPI()"

def write(file_path: str, text: str, overwrite: bool = False) -> str:
    "Write a file"
    return "written"

def edit_lines(): "Edit"
def find_replace(): "Replace"
def delete(): "Delete"
def tree(): "Show"
def ls(): "List"
def grep(pattern: str) -> str:
    "Find"
    return "found"
"""


def test_spec_O14_progress_streaming(llmock: LLMock, tmp_path: Path) -> None:
    llmock.call_tool("read", {"file_path": "app.py"})
    llmock.call_tool("write", {"file_path": "app.py", "text": "...", "overwrite": True})
    llmock.call_tool("write", {"file_path": "test.py", "text": "..."})
    llmock.call_tool("grep", {"pattern": "health"}).reply("The route is there.")
    printed = run(tmp_path, CODING_TOOLS + source(ORCHESTRATOR, "progress streaming"))
    assert printed.splitlines() == [
        "thinking...", "read 'app.py'",
        "thinking...", "overwrote 'app.py'",
        "thinking...", "created 'test.py'",
        "thinking...", "ran grep",
        "thinking...", "The route is there.",
    ]  # fmt: skip
    llmock.fail(401, message="Incorrect API key")
    program = script(tmp_path, CODING_TOOLS + source(ORCHESTRATOR, "progress streaming"))
    failed = subprocess.run(program, env=environment(tmp_path), capture_output=True, text=True, timeout=60)
    assert failed.stdout.splitlines()[:2] == ["thinking...", failed.stdout.splitlines()[1]]
    assert failed.stdout.splitlines()[1].startswith("error: ") and "Incorrect API key" in failed.stdout


# -- context


async def test_spec_C01_the_context() -> None:
    context = (await execute(source(CONTEXT, "agent context"), {}))["context"]
    assert (context.query, context.messages, context.turn) == ("Tell me a joke", [], 0)


async def test_spec_C02_C03_a_custom_context_and_its_agent(system: System, llmock: LLMock) -> None:
    names = await execute(source(CONTEXT, "custom context"), {})
    names |= {"tools": [search_web]}
    await execute(source(CONTEXT, "using a custom context"), names)
    agent, context = names["agent"], names["context"]
    context.agent_a_messages.append({"role": "user", "content": "a"})
    task = agent.create_task(owner_id="user123", payload=context)
    assert names["task"].payload == context.model_copy(update={}) and task.owner_id == "user123"
    llmock.reply("They develop.")
    await system.start(agent)
    await system.orchestrator.enqueue_task(agent=agent, task=task)
    data = await system.ended(task.id)
    restored = names["DualAgentContext"].from_dict(data["payload"])
    assert (restored.agent_a_messages, restored.agent_b_messages) == ([{"role": "user", "content": "a"}], [])
    assert restored.output == "They develop."


async def test_spec_C04_the_execution_context(
    system: System, llmock: LLMock, capsys: pytest.CaptureFixture[str]
) -> None:
    llmock.reply("Done.")
    names = await execute(source(CONTEXT, "execution context"), {})
    agent = names["MyAgent"](model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent, owner_id="user123")
    assert (await system.ended(task_id))["payload"]["output"] == "Done."
    assert capsys.readouterr().out.splitlines() == [
        f"Task ID: {task_id}", "Owner ID: user123", "Retries: 0", "Iterations: 1",
    ]  # fmt: skip


async def test_spec_C05_contexts_in_tools(system: System, llmock: LLMock) -> None:
    names = await execute(
        source(CONTEXT, "context in tools"),
        {
            "AgentContext": AgentContext,
            "ExecutionContext": ExecutionContext,
            "run_tool_a": lambda given: f"a: {given}",
            "run_tool_b": lambda given: f"b: {given}",
        },
    )
    tools = [names[name] for name in ("stateless_tool", "stateful_tool", "tool_with_fallbacks")]
    for tool in tools:
        llmock.call_tool(tool.__name__, {"input_args": "x"})
    llmock.call_tool("stateful_tool", {"input_args": "y"}).reply("Done.")
    history = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}] * 2
    output = await answer(system, Agent(tools=tools, model=gpt_41), AgentContext(query="Go", messages=history))
    assert output == "Done."
    for offered in llmock.last_request.body["tools"]:
        assert list(offered["function"]["parameters"]["properties"]) == ["input_args"]
    shown = [one["content"] for one in llmock.last_request.body["messages"] if one["role"] == "tool"]
    assert shown[1:] == ["a: x", "a: x", "b: y"]  # by the last call there are more than ten messages


# -- agents


async def test_spec_A01_the_quick_start(system: System, llmock: LLMock) -> None:
    llmock.call_tool("get_weather", {"location": "Oslo"}).reply("Sunny!")
    agent = (await execute(source(AGENTS, "quick start"), {}))["agent"]
    assert await answer(system, agent) == "Sunny!"
    system_prompt, *_, result = llmock.last_request.body["messages"]
    assert system_prompt["content"].startswith("You are a helpful weather assistant.")
    assert result["content"].startswith("The weather in Oslo is sunny")


async def test_spec_A01_tools(system: System, llmock: LLMock) -> None:
    llmock.call_tool("search_web", {"query": "Factorial"}).reply("Found.")
    names: Names = {"Agent": Agent}
    await execute(source(AGENTS, "tools"), names)
    assert await answer(system, names["agent"]) == "Found."
    assert llmock.last_request.body["messages"][-1]["content"] == "Search results for: Factorial"


async def test_spec_A02_to_A04_models(system: System, llmock: LLMock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(claude_4_sonnet.provider), "base_url", llmock.base_url())  # a host
    imports, *parts = re.split(r"^(?=# )", source(AGENTS, "models"), flags=re.MULTILINE)
    names = await execute(imports, {})
    asked = []
    for part in parts:  # each makes an `agent`
        await execute(part, names)
        agent = names["agent"]
        agent.tools |= Agent(tools=[search_web]).tools
        llmock.reset().fail(500, times=None, model=claude_4_sonnet.provider_model_id)
        llmock.call_tool("search_web", {"query": "x"}).reply("Done.")
        assert await answer(system, agent) == "Done."
        asked.append(list(dict.fromkeys(request.body["model"] for request in llmock.requests)))
    assert asked == [["gpt-4.1"], ["gpt-4.1", "gpt-4.1-mini"], [claude_4_sonnet.provider_model_id, "gpt-5"]]


async def test_spec_A05_model_settings(system: System, llmock: LLMock) -> None:
    llmock.reply("Once upon a time.")
    names: Names = {"Agent": Agent}
    await execute(source(AGENTS, "model settings"), names)
    agent = names["agent"]
    agent.tools |= Agent(tools=[search_web]).tools  # what a tool choice is for
    assert await answer(system, agent) == "Once upon a time."
    body = llmock.last_request.body
    assert (body["temperature"], body["max_completion_tokens"]) == (0.8, 1000)
    assert (body["tool_choice"], body["parallel_tool_calls"]) == ("auto", True)


async def test_spec_A06_dynamic_model_settings(system: System, llmock: LLMock) -> None:
    def plan(steps: str) -> str:
        """Plan"""
        return steps

    llmock.call_tool("plan", {"steps": "one"}).reply("Done.")
    names: Names = {"Agent": Agent, "ModelSettings": factorial.ModelSettings}
    await execute(source(AGENTS, "dynamic model settings"), names)
    agent = names["agent"]
    agent.tools |= Agent(tools=[plan]).tools
    assert await answer(system, agent) == "Done."
    first, second = (request.body for request in llmock.requests)
    assert (first["temperature"], first["tool_choice"]) == (0, {"type": "function", "function": {"name": "plan"}})
    assert (second["temperature"], second["tool_choice"]) == (1, "required")


async def test_spec_A07_structured_output(system: System, llmock: LLMock) -> None:
    llmock.call_tool("final_output", {"setup": "Knock knock"})
    llmock.call_tool("final_output", {"setup": "Knock knock", "punchline": "Who's there?"})
    names: Names = {"Agent": Agent, "search_web": search_web}
    await execute(source(AGENTS, "structured output"), names)
    assert await answer(system, names["agent"]) == {"setup": "Knock knock", "punchline": "Who's there?"}
    assert "punchline" in llmock.last_request.body["messages"][-1]["content"]  # what was wrong with the first


async def test_spec_A13_creating_tasks(system: System, llmock: LLMock) -> None:
    llmock.reply("Foggy.")
    agent = Agent(model=gpt_41)
    names: Names = {"orchestrator": system.orchestrator, "agent": agent}
    await execute(source(AGENTS, "creating tasks"), names)
    await system.start(agent)
    data = await system.ended(names["task"].id)
    assert (data["owner_id"], data["payload"]["output"]) == ("user123", "Foggy.")
    assert llmock.last_request.body["messages"][-1]["content"] == "What's the weather like in San Francisco?"


async def test_spec_A08_to_A10_a_custom_agent(
    system: System, llmock: LLMock, capsys: pytest.CaptureFixture[str]
) -> None:
    llmock.call_tool("search_web", {"query": "x"}).reply("Done.")
    names = await execute(
        source(AGENTS, "custom agent"),
        {
            "Any": Any,
            "ChatCompletion": ChatCompletion,
            "ChatCompletionMessageToolCall": ChatCompletionMessageToolCall,
            "FunctionToolActionResult": FunctionToolActionResult,
            "TurnCompletion": TurnCompletion,
        },
    )
    agent = names["CustomAgent"](tools=[search_web], model=gpt_41)
    assert await answer(system, agent) == "Done."
    asked = ["Making completion request for turn {}", "Received response with 1 choices"]
    printed = [asked[0].format(0), asked[1], "Executing tool: search_web", asked[0].format(1), asked[1]]
    assert capsys.readouterr().out.splitlines() == printed
    assert await answer(system, agent, AgentContext(query="And?", turn=6)) == "Conversation limit reached"


async def test_spec_C02_custom_context_classes(
    system: System, llmock: LLMock, capsys: pytest.CaptureFixture[str]
) -> None:
    def analyze_source(url: str, agent_ctx: Any) -> str:
        """Analyze a source"""
        agent_ctx.sources_found.append(url)
        return "It is about schools."

    llmock.call_tool("analyze_source", {"url": "https://example.org"}).reply("It helps.")
    names: Names = {
        "search_web": search_web,
        "analyze_source": analyze_source,
        "TurnCompletion": TurnCompletion,
        "Orchestrator": Orchestrator,
    }
    await execute(source(AGENTS, "custom context classes"), names)
    await system.start(names["ResearchAgent"]())
    data = await system.ended(names["task"].id)
    assert (data["owner_id"], data["payload"]["output"]) == ("researcher123", "It helps.")
    assert data["payload"]["sources_found"] == ["https://example.org"]
    assert capsys.readouterr().out.splitlines() == [
        "Researching: AI in Education", "Sources found: 0", "Researching: AI in Education", "Sources found: 1",
    ]  # fmt: skip
    await names["orchestrator"].close()


async def test_spec_A11_A12_errors_and_retries(system: System, llmock: LLMock) -> None:
    names: Names = {"BaseAgent": BaseAgent, "AgentContext": AgentContext}
    await execute(source(AGENTS, "errors and retries"), names)

    class Used(names["RobustAgent"]):  # type: ignore[misc, name-defined, valid-type]  # a class of the snippet
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            output = await self.process_data(agent_ctx)
            return TurnCompletion(is_done=True, context=agent_ctx, output=output)

    agent = Used(name="used")
    await system.start(agent)
    task_id = await system.submit(agent)
    assert (await system.ended(task_id))["payload"]["output"] == "processed"
    published = await system.types(task_id, progress=True)
    assert [name for name in published if "data_processing" in name] == [
        "progress_update_data_processing_started", "progress_update_data_processing_completed",
    ]  # fmt: skip


# -- events


class EnqueueRequest(BaseModel):
    user_id: str
    query: str
    message_history: list[dict[str, Any]] = []


def backend(**more: Any) -> Names:
    """What the document's web backend supposes."""
    agent = Agent(name="basic_agent", model=gpt_41)
    return {
        "app": FastAPI(),
        "EnqueueRequest": EnqueueRequest,
        "AgentContext": AgentContext,
        "WebSocket": WebSocket,
        "WebSocketDisconnect": WebSocketDisconnect,
        "json": json,
        "Any": Any,
        "basic_agent": agent,
        "my_agent": agent,
        "orchestrator": Orchestrator(),
        **more,
    }


def of(event_type: str) -> Callable[[list[dict[str, Any]]], bool]:
    return lambda heard: bool(heard) and heard[-1]["event_type"] == event_type


async def test_spec_E12_the_web_backend(system: System, llmock: LLMock) -> None:
    """With a client from the start, one that comes late, and one for each filter."""
    names = backend()
    for name in ("enqueue", "subscribe", "final", "tasks", "progress"):
        await execute(source(EVENTS, name), names)
    llmock.reply("Sunny.")
    await system.start(names["my_agent"])
    with served(names["app"]) as address:
        async with (
            socket(address, "/ws/user") as everything,
            socket(address, "/ws/user/final") as final,
            socket(address, "/ws/user/progress") as progress,
        ):
            question = {"user_id": "user", "query": "Well?", "message_history": [{"role": "user", "content": "Hi"}]}
            task_id = (await post(address, "/api/enqueue", question))["task_id"]
            heard = await hear(everything, of("run_completed"))
            assert heard == await system.events(task_id, "user")
            assert await hear(final, of("run_completed")) == heard[-1:]
            steps = await hear(progress, of("progress_update_run_turn_completed"))
            assert steps == [one for one in heard if one["event_type"].startswith("progress_update_")]
        async with (
            socket(address, "/ws/user") as late,
            socket(address, f"/ws/user/tasks/other,{task_id}") as of_the_task,
        ):
            assert await hear(late, of("run_completed")) == heard
            assert await hear(of_the_task, of("run_completed")) == heard
    assert [one["content"] for one in llmock.last_request.body["messages"]] == ["Hi", "Well?"]


async def test_spec_E12_a_client_of_the_web_backend_that_reconnects(system: System, llmock: LLMock) -> None:
    """Cut off while the run is under way, and back while it still is, and once more when it has ended: as the
    backend of the document knows no event ids, it receives everything from the beginning of the run each time."""
    go_on = asyncio.Event()

    async def look() -> str:
        """Look"""
        await go_on.wait()
        return "seen"

    names = backend(basic_agent=Agent(name="basic_agent", tools=[look], model=gpt_41))
    names["my_agent"] = names["basic_agent"]
    for name in ("enqueue", "subscribe"):
        await execute(source(EVENTS, name), names)
    llmock.call_tool("look").reply("Sunny.")
    await system.start(names["my_agent"])
    with served(names["app"]) as address:
        async with socket(address, "/ws/user") as client:
            task_id = (await post(address, "/api/enqueue", {"user_id": "user", "query": "Well?"}))["task_id"]
            await hear(client, of("progress_update_tool_action_started"))
            client.transport.abort()  # the line is cut: nothing is said to the server
        async with socket(address, "/ws/user") as again:
            await hear(again, of("progress_update_tool_action_started"))
            go_on.set()
            await hear(again, of("run_completed"))
        async with socket(address, "/ws/user") as again:
            assert await hear(again, of("run_completed")) == await system.events(task_id, "user")


async def test_spec_E02_E12_the_manual_method(
    system: System, own_valkey: ValkeyServer, llmock: LLMock, capsys: pytest.CaptureFixture[str]
) -> None:
    clients: list[Redis] = []

    class Connecting:
        """`redis_client`: one for each event loop, and this one lives in the server's."""

        def pubsub(self) -> PubSub:
            clients.append(Redis.from_url(own_valkey.url))
            return clients[-1].pubsub()

    names = backend(redis_client=Connecting(), PubSub=PubSub, WS_REDIS_SUB_TIMEOUT=0.05)
    await execute(source(EVENTS, "enqueue"), names)
    await execute(source(EVENTS, "manual"), names)
    llmock.reply("Sunny.")
    await system.start(names["my_agent"])
    channel = system.orchestrator.get_updates_channel("user")

    async def subscribed() -> bool:
        return bool((await system.execute("PUBSUB", "NUMSUB", channel))[1])

    with served(names["app"]) as address:
        async with socket(address, "/ws/user") as client:
            await wait_until(subscribed)
            task_id = (await post(address, "/api/enqueue", {"user_id": "user", "query": "Well?"}))["task_id"]
            assert await hear(client, of("run_completed")) == await system.events(task_id, "user")
        await post(address, "/api/enqueue", {"user_id": "user", "query": "Anybody there?"})
        await wait_until(lambda: _is_over(subscribed), 20)
    assert f"subscribing to channel={channel}" in capsys.readouterr().out


async def _is_over(condition: Callable[[], Any]) -> bool:
    return not await condition()


def example(name: str) -> dict[str, Any]:
    """An example of an event: JSON but for comments and `...`, so Python."""
    shown: dict[str, Any] = eval(source(EVENTS, name), {"str": str, "dict": dict})
    return shown


def test_spec_E03_the_base_fields() -> None:
    shown = example("base fields")
    assert shown == {
        "event_type": str, "task_id": str, "owner_id": str, "timestamp": str, "agent_name": str,
        "metadata": dict | None,
    }  # fmt: skip
    assert AgentEvent(event_type="x").to_dict().keys() == shown.keys()


@pytest.mark.parametrize("event_type", [name for name in EVENTS if name in CATALOGUE])
def test_spec_E04_to_E08_the_examples_have_the_catalogues_fields(event_type: str) -> None:
    """And what is published has these: `test_spec_e_events.py`."""
    shown = example(event_type)
    assert shown["event_type"] == event_type
    base = set(example("base fields")) - {"metadata"}
    carries = CATALOGUE[event_type].carries
    own = {name for name in carries if not name.startswith(("data.", "metadata."))}
    assert shown.keys() - {"data"} <= base | own
    assert shown.keys() >= base | (own - {"turn"} if event_type.startswith("progress_") else own)
    if event_type == "progress_update_completion_started":
        assert {f"data.{name}" for name in shown["data"]} <= set(carries)


async def test_spec_E06_the_error_of_a_failed_run(system: System, llmock: LLMock) -> None:
    llmock.outage(status=503)
    agent = Agent(name="my_agent", model=gpt_41)
    await system.start(agent, factorial.AgentWorkerConfig(max_retries=0, retry_delay=0.01, provider_patience=0.0))
    task_id = await system.submit(agent)
    failed = await system.event(task_id, "run_failed", 30)
    expected = example("run_failed")["error"].replace("task-123", task_id).replace("(3)", "(0)")
    assert failed["error"].startswith(expected)


async def test_spec_E09_custom_events(system: System, llmock: LLMock) -> None:
    llmock.reply("Done.")
    names = await execute(source(EVENTS, "custom events"), {})
    agent = names["CustomAgent"](model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    event = await system.event(task_id, "my_custom_run_turn_started_event")
    assert (event["task_id"], event["owner_id"], event["agent_name"]) == (task_id, "owner", agent.name)
    assert "data" in event
    assert (await system.ended(task_id))["payload"]["output"] == "Done."


async def test_spec_A12_the_progress_decorator(
    system: System, llmock: LLMock, capsys: pytest.CaptureFixture[str]
) -> None:
    llmock.reply("Done.")
    names = await execute(source(EVENTS, "progress decorator"), {})
    agent = names["CustomAgent"](model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    assert (await system.ended(task_id))["payload"]["output"] == "Done."
    published = [name for name in await system.types(task_id, progress=True) if "work" in name or "custom" in name]
    assert published == [
        "my_custom_run_turn_started_event",
        "progress_update_do_some_work_started",
        "progress_update_do_some_work_completed",
    ]
    assert capsys.readouterr().out == "doing some work\n"


async def test_spec_E10_custom_event_types(system: System) -> None:
    class Analyst(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            names = {"self": self, "execution_ctx": self.get_execution_context()}
            await execute(source(EVENTS, "custom event types"), names)
            return TurnCompletion(is_done=True, context=agent_ctx, output="Done.")

    agent = Analyst()
    await system.start(agent)
    task_id = await system.submit(agent)
    event = await system.event(task_id, "sentiment_analysis_completed")
    assert (event["analysis_type"], event["confidence_score"], event["processing_time_ms"]) == ("sentiment", 0.95, 1500)
    assert (event["task_id"], event["agent_name"]) == (task_id, agent.name)
