"""Running an agent here and now, without Redis (O13 to O15, and O17 for it).

Real: HTTP, the openai client. Fake: the language model. There is no Redis.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from llmock.pytest_plugin import LLMock

from factorial import (
    Agent,
    AgentContext,
    AgentWorkerConfig,
    BaseEvent,
    ExecutionContext,
    FatalAgentError,
    RetryableError,
    deferred_result,
    gpt_41,
)
from factorial.errors import MaxTurnsError, ModelRefusedError
from factorial.testing import call, calls
from factorial.tools import forking_tool
from tests.harness import System
from tests.spec.provider import Provider, texts

ROOT = Path(__file__).resolve().parents[2]


async def read(path: str) -> str:
    """Read a file."""
    return f"contents of {path}"


async def lose(path: str) -> str:
    """Lose a file."""
    raise FileNotFoundError(f"{path} is lost")


class Heard:
    """An event handler that keeps what it hears."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    async def __call__(self, event: BaseEvent) -> None:
        await asyncio.sleep(0)
        self.events.append(event)

    @property
    def types(self) -> list[str]:
        """What was heard, in order."""
        return [event.event_type for event in self.events]

    def of(self, event_type: str) -> Any:
        """The first event of a type."""
        return next(event for event in self.events if event.event_type == event_type)


def test_spec_O13_the_snippet_needs_no_redis(llmock: LLMock, tmp_path: Path) -> None:
    """The document's own, in a process in which the redis library cannot even be imported."""
    llmock.call_tool("read", {"path": "README.md"}).reply("It explains everything.")
    (tmp_path / "program.py").write_text("""
import asyncio, sys
sys.modules["redis"] = None
from factorial import Agent, AgentContext

def read(path: str) -> str:
    "Read a file."
    return f"contents of {path}"

agent = Agent(instructions="You are a helpful assistant.", tools=[read], max_turns=10)

async def main():
    ctx = AgentContext(query="Summarize README.md")
    completion = await agent.run_inline(ctx)
    print(completion.output)

asyncio.run(main())
""")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REDIS_")}
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "It explains everything.\n", done.stderr
    assert texts(llmock.last_request.body["messages"]) == [
        "system: You are a helpful assistant.", "user: Summarize README.md", "assistant: read()",
        "tool: contents of README.md",
    ]  # fmt: skip


async def test_spec_O13_the_lifecycle_and_the_events_are_those_of_a_worker(system: System, provider: Provider) -> None:
    """The same agent, once inline and once in a worker: the same requests, messages and events."""
    provider.replies = [calls(call("read", path="a"), call("lose", path="b")), "done"]
    agent = Agent(name="worker", instructions="Be brief.", model=gpt_41, tools=[read, lose])
    heard = Heard()
    completion = await agent.run_inline(AgentContext(query="hello"), event_handler=heard)
    await system.start(agent)
    task_id = await system.submit(agent, "hello")
    data = await system.ended(task_id)
    assert completion.output == data["payload"]["output"] == "done"
    assert completion.context.turn == data["payload"]["turn"] == 2
    assert texts(completion.context.messages) == texts(data["payload"]["messages"])
    assert texts(provider.calls[1].messages) == texts(provider.calls[3].messages)
    # Tools run side by side, and so do their events.
    assert sorted(heard.types) == sorted((await system.types(task_id, progress=True))[1:])  # without `run_enqueued`
    assert [name for name in heard.types if "tool" not in name] == [
        name for name in (await system.types(task_id, progress=True))[1:] if "tool" not in name
    ]
    stored = {event["event_type"]: set(event) - {"id"} for event in await system.events(task_id)}
    for event in heard.events:
        if event.event_type.startswith("progress_update_"):
            assert set(event.to_dict()) == stored[event.event_type]


async def test_spec_O14_the_document_s_event_printer_works(provider: Provider) -> None:
    """It finds the tool's name and arguments, and the errors."""
    printed: list[str] = []

    async def event_printer(event: Any) -> None:
        event_type: str = getattr(event, "event_type", "")
        if event_type == "progress_update_completion_started":
            printed.append("thinking...")
        elif event_type == "progress_update_tool_action_started":
            function = (event.data.get("args") or [])[0].get("function") or {}
            arguments = function.get("arguments", {})
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            printed.append(f"{function.get('name')} {arguments}")
        elif event_type.endswith("_failed"):
            printed.append(f"error: {getattr(event, 'error', None) or getattr(event, 'data', {})}")

    provider.replies = [call("read", path="README.md"), "done"]
    agent = Agent(name="worker", model=gpt_41, tools=[read])
    completion = await agent.run_inline(AgentContext(query="hello"), event_handler=event_printer)
    assert completion.output == "done"
    assert printed == ["thinking...", "read {'path': 'README.md'}", "thinking..."]


async def test_spec_O14_the_handler_hears_the_pieces_of_a_streamed_answer(llmock: LLMock) -> None:
    """Of each model call between its beginning and its end, as a worker publishes them (T05)."""
    agent, heard = Agent(name="worker", model=gpt_41, tools=[read], stream=True), Heard()
    llmock.call_tool("read", {"path": "a"}).reply("It explains everything, and more than that.")
    completion = await agent.run_inline(AgentContext(query="hello"), event_handler=heard)
    chunks = [event for event in heard.events if event.event_type == "progress_update_completion_chunk"]
    said = "".join(choice["delta"].get("content") or "" for one in chunks for choice in one.data["choices"])
    assert said == completion.output == "It explains everything, and more than that."
    assert {event.turn for event in chunks} == {0, 1}
    story = " ".join(heard.types).replace("progress_update_", "")
    assert len(re.findall(r"completion_started (?:completion_chunk )+completion_completed", story)) == 2


async def test_spec_O14_a_model_that_refuses_fails_the_run_and_its_steps(provider: Provider) -> None:
    agent, heard = Agent(name="worker", model=gpt_41), Heard()
    run = asyncio.create_task(agent.run_inline(AgentContext(query="hello"), event_handler=heard))
    (await provider.called()).refuse(401)
    with pytest.raises(ModelRefusedError, match="HTTP 401"):
        await run
    assert heard.types == [
        "run_started", "progress_update_run_turn_started", "progress_update_completion_started",
        "progress_update_completion_failed", "progress_update_run_turn_failed", "task_failed", "run_failed",
    ]  # fmt: skip
    for event in heard.events[3:]:
        assert "HTTP 401" in event.error
    assert heard.events[-1].error.startswith("Agent worker failed to complete task ")


async def test_spec_O14_a_failed_turn_is_tried_again(provider: Provider) -> None:
    policy = AgentWorkerConfig(retry_delay=0.02, max_retry_delay=0.02, max_retries=2)
    agent, heard = Agent(name="worker", model=gpt_41), Heard()
    run = asyncio.create_task(agent.run_inline(AgentContext(query="hello"), heard, worker_config=policy))
    for _ in range(2):
        (await provider.called()).garble()
    (await provider.called()).answer("done")
    assert (await run).output == "done"
    ends = [name for name in heard.types if not name.startswith("progress")]
    assert ends == ["run_started", *["task_failed", "task_retried"] * 2, "agent_output", "run_completed"]
    assert 0.01 <= heard.of("task_retried").data["delay"] <= 0.02


async def test_spec_O14_what_a_tool_raises(provider: Provider) -> None:
    """An ordinary exception is shown to the model; a fatal one ends the run, and is raised."""

    async def destroy() -> str:
        """Destroy."""
        raise FatalAgentError("there is nothing left")

    provider.replies = [call("lose", path="a"), call("destroy"), "never said"]
    agent, heard = Agent(name="worker", model=gpt_41, tools=[lose, destroy]), Heard()
    context = AgentContext(query="hello")
    with pytest.raises(FatalAgentError, match="there is nothing left"):
        await agent.run_inline(context, event_handler=heard)
    assert texts(provider.calls[1].messages)[-1] == "tool: Error: FileNotFoundError: a is lost"
    assert len(provider.calls) == 2
    failed = [event.error for event in heard.events if event.event_type == "progress_update_tool_action_failed"]
    assert failed == ["FileNotFoundError: a is lost", "there is nothing left"]
    assert heard.types[-1] == "run_failed"


async def test_spec_O14_a_run_that_is_cancelled_abandons_its_model_call(provider: Provider) -> None:
    """The caller may cancel it, like any coroutine."""
    agent, heard = Agent(name="worker", model=gpt_41), Heard()
    run = asyncio.create_task(agent.run_inline(AgentContext(query="hello"), event_handler=heard))
    request = await provider.called()
    before = time.monotonic()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await request.abandoned()
    assert time.monotonic() - before < 5
    assert heard.types[-1] == "run_cancelled"
    assert heard.types.count("run_cancelled") == 1


async def test_spec_O14_a_handler_that_fails_is_heard_of(provider: Provider) -> None:
    """Its mistake is not swallowed, and not taken for the agent's: no turn is tried again for it."""
    provider.replies = ["done"]

    async def broken(event: BaseEvent) -> None:
        raise ValueError("the handler is broken")

    with pytest.raises(Exception, match="the handler is broken"):
        await Agent(name="worker", model=gpt_41).run_inline(AgentContext(query="hello"), event_handler=broken)


async def test_spec_O15_a_tool_runs_another_agent(system: System, provider: Provider) -> None:
    """Two levels deep, inline within inline, and in a worker: each run has its own events and its own context."""
    replies: dict[str, list[Any]] = {
        "outer": [call("ask_middle"), "outer done"],
        "middle": [calls(call("ask_inner", name="a"), call("ask_inner", name="b")), "middle done"],
        "inner": ["inner done"],
    }
    provider.replies = lambda messages: replies[messages[0]["content"]][
        sum(message["role"] == "assistant" for message in messages)
    ]
    heard = {"outer": Heard(), "middle": Heard(), "inner": Heard()}
    inner = Agent(name="inner", instructions="inner", model=gpt_41)

    async def ask_inner(name: str, execution_ctx: ExecutionContext) -> str:
        """Ask the inner agent."""
        completion = await inner.run_inline(AgentContext(query=name), event_handler=heard["inner"])
        assert ExecutionContext.current().task_id == execution_ctx.task_id
        return f"{name}: {completion.output}"

    middle = Agent(name="middle", instructions="middle", model=gpt_41, tools=[ask_inner])

    async def ask_middle(execution_ctx: ExecutionContext) -> str:
        """Ask the middle agent."""
        completion = await middle.run_inline(AgentContext(query="ask"), event_handler=heard["middle"])
        assert ExecutionContext.current().agent_name == execution_ctx.agent_name == "outer"
        return str(completion.output)

    outer = Agent(name="outer", instructions="outer", model=gpt_41, tools=[ask_middle])
    completion = await outer.run_inline(AgentContext(query="hello"), event_handler=heard["outer"])
    assert texts(completion.context.messages) == [
        "user: hello", "assistant: ask_middle()", "tool: middle done", "assistant: outer done",
    ]  # fmt: skip
    last_of_middle = next(one for one in provider.calls[::-1] if one.messages[0]["content"] == "middle")
    assert texts(last_of_middle.messages)[-2:] == ["tool: a: inner done", "tool: b: inner done"]
    for name, one in heard.items():
        assert {event.agent_name for event in one.events} == {name}
    assert len({event.task_id for one in heard.values() for event in one.events}) == 4

    await system.start(outer)
    task_id = await system.submit(outer, "hello")
    data = await system.ended(task_id)
    assert texts(data["payload"]["messages"]) == texts(completion.context.messages)
    assert {event["task_id"] for event in await system.events()} == {task_id}


async def test_spec_O15_the_failure_of_the_other_agent_is_the_tool_s(provider: Provider) -> None:
    """The model is shown what went wrong, and may do without."""
    provider.replies = lambda messages: None if messages[0]["content"] == "inner" else (
        "done without" if messages[-1]["role"] == "tool" else call("ask")
    )  # fmt: skip
    inner = Agent(name="inner", instructions="inner", model=gpt_41)

    async def ask() -> str:
        """Ask the other agent."""
        return str((await inner.run_inline(AgentContext(query="?"))).output)

    outer = Agent(name="outer", instructions="outer", model=gpt_41, tools=[ask])
    run = asyncio.create_task(outer.run_inline(AgentContext(query="hello")))
    (await provider.called()).refuse(400, message="I do not like it")
    completion = await run
    assert completion.output == "done without"
    shown = texts(completion.context.messages)[2]
    assert shown.startswith("tool: Error: ") and "I do not like it" in shown


async def test_spec_O15_cancelling_the_outer_run_cancels_the_inner_one(system: System, provider: Provider) -> None:
    """In a worker, through the orchestrator."""
    provider.replies = lambda messages: None if messages[0]["content"] == "inner" else call("ask")
    inner, heard = Agent(name="inner", instructions="inner", model=gpt_41), Heard()

    async def ask() -> str:
        """Ask the other agent."""
        return str((await inner.run_inline(AgentContext(query="?"), event_handler=heard)).output)

    outer = Agent(name="outer", instructions="outer", model=gpt_41, tools=[ask])
    await system.start(outer)
    task_id = await system.submit(outer, "hello")
    request = await provider.called()
    await system.orchestrator.cancel_task(task_id)
    await request.abandoned()
    assert (await system.ended(task_id))["status"] == "cancelled"
    assert heard.types[-1] == "run_cancelled"


async def test_spec_O15_children_run_beside_their_parent(provider: Provider) -> None:
    """The document rules them out inline, and they work: the same agent needs no second version of its tool."""
    child, heard = Agent(name="child", instructions="child", model=gpt_41), Heard()

    @forking_tool(timeout=600)
    async def fork(execution_ctx: ExecutionContext) -> list[str]:
        """Have others work."""
        return [await execution_ctx.spawn_child_task(child, AgentContext(query=part)) for part in "ab"]

    provider.replies = lambda messages: (
        f"{messages[-1]['content']} done" if messages[0]["content"] == "child"
        else "done" if messages[-1]["role"] == "tool" else call("fork")
    )  # fmt: skip
    agent = Agent(name="worker", model=gpt_41, tools=[fork])
    completion = await agent.run_inline(AgentContext(query="hello"), event_handler=heard)
    assert completion.output == "done"
    result = completion.context.messages[2]
    assert result["role"] == "tool" and "a done" in result["content"] and "b done" in result["content"]
    assert heard.types.count("run_completed") == 3


async def test_spec_O15_a_result_from_outside_cannot_come_and_is_not_waited_for(provider: Provider) -> None:
    """An inline run cannot be reached from outside. So it fails at once, and the error says why."""

    @deferred_result(timeout=600)
    async def ask() -> None:
        """Ask a person."""

    provider.replies = [call("ask"), "never asked"]
    agent, heard = Agent(name="worker", model=gpt_41, tools=[ask]), Heard()
    with pytest.raises(FatalAgentError, match=r"tool 'ask' awaits a result from outside.* an inline run"):
        await agent.run_inline(AgentContext(query="hello"), event_handler=heard)
    assert heard.types[-1] == "run_failed"


async def test_spec_O17_an_inline_run_ends_within_max_turns(provider: Provider) -> None:
    """The last request asks for an answer in words; a model that calls a tool all the same makes the run fail."""
    agent = Agent(name="worker", model=gpt_41, tools=[read], max_turns=3)
    provider.replies = [call("read", path="a"), call("read", path="b"), "done"]
    completion = await agent.run_inline(AgentContext(query="hello"))
    assert (completion.output, completion.context.turn) == ("done", 3)
    assert [request.body.get("tool_choice") for request in provider.calls] == [None, None, "none"]
    provider.replies = lambda messages: call("read", path="again")
    with pytest.raises(MaxTurnsError, match="the run was not done within max_turns=3"):
        await agent.run_inline(AgentContext(query="hello"))
    assert len(provider.calls) == 6


@pytest.mark.parametrize("max_turns", [1, 2, 5])
async def test_spec_O17_a_run_ends_within_max_turns(system: System, provider: Provider, max_turns: int) -> None:
    """Tries that fail are not turns."""
    failures = iter([True, False] * 10)

    async def shaky() -> str:
        """Shake."""
        if next(failures):
            raise RetryableError("again")
        return "shaken"

    provider.replies = lambda messages: call("shaky")
    agent = Agent(name="worker", model=gpt_41, tools=[shaky], max_turns=max_turns)
    await system.start(agent)
    task_id = await system.submit(agent, "hello")
    data = await system.ended(task_id)
    assert (data["status"], data["payload"]["turn"]) == ("failed", max_turns)
    assert data["error"] == f"the run was not done within max_turns={max_turns}"
    assert len(provider.calls) == max_turns
    assert (await system.types(task_id)).count("task_retried") == max_turns
