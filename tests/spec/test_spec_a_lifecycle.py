"""Chapter A of PROMISES.md, A13: the whole lifecycle, as the exact sequence of events and requests. Real: Valkey,
HTTP, the openai client. Fake: the language model."""

import asyncio
from typing import Any

from llmock.pytest_plugin import LLMock

from factorial import Agent, AgentContext, BaseEvent, ExecutionContext, gpt_41
from tests.harness import System

SYSTEM = {"role": "system", "content": "You add up."}
QUESTION = {"role": "user", "content": "How much is 2 and 3, and 4?"}

A_TURN_WITH_A_TOOL = [
    "progress_update_run_turn_started",
    "progress_update_completion_started",
    "progress_update_completion_completed",
    "progress_update_tool_action_started",
    "progress_update_tool_action_completed",
    "progress_update_run_turn_completed",
]
THE_LAST_TURN = [
    "progress_update_run_turn_started",
    "progress_update_completion_started",
    "progress_update_completion_completed",
    "progress_update_run_turn_completed",
    "agent_output",
    "run_completed",
]


def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


def script(llmock: LLMock) -> None:
    llmock.call_tool("add", {"a": 2, "b": 3}).call_tool("add", {"a": 5, "b": 4}).reply("It is 9.")


def adder(**options: Any) -> Agent:
    defaults: dict[str, Any] = {"name": "adder", "instructions": "You add up.", "tools": [add], "model": gpt_41}
    return Agent(**defaults | options)


def outline(messages: list[dict[str, Any]]) -> list[str]:
    """Each message in a few words."""
    return [
        f"{message['role']}: "
        + (", ".join(call["function"]["arguments"] for call in message.get("tool_calls", ())) or message["content"])
        for message in messages
    ]


async def test_spec_A13_created_enqueued_turn_by_turn_and_done(system: System, llmock: LLMock) -> None:
    script(llmock)
    agent = adder()

    task = agent.create_task(owner_id="owner", payload=AgentContext(query=QUESTION["content"]))
    assert await system.orchestrator.get_task_data(task.id) is None, "created, and nowhere yet"
    await system.orchestrator.enqueue_task(agent=agent, task=task)
    assert await system.orchestrator.get_task_status(task.id) == "queued"
    assert await system.types(task.id, progress=True) == ["run_enqueued"]
    assert not llmock.requests

    await system.start(agent)
    data = await system.ended(task.id, 30)
    assert data["status"] == "completed"
    assert await system.types(task.id, progress=True) == [
        "run_enqueued",
        "run_started",
        *A_TURN_WITH_A_TOOL,
        *A_TURN_WITH_A_TOOL,
        *THE_LAST_TURN,
    ]
    published = [event for event in await system.events(task.id) if event["event_type"].startswith("progress_")]
    assert [event["metadata"]["turn"] for event in published if event["event_type"].endswith("_started")] == [
        0, 0, 0, 1, 1, 1, 2, 2,
    ]  # fmt: skip

    # Each request is the instructions and the conversation so far; what is stored in the end is all of it.
    stored = data["payload"]["messages"]
    assert [request.body["messages"] for request in llmock.requests] == [
        [SYSTEM, *stored[:1]],
        [SYSTEM, *stored[:3]],
        [SYSTEM, *stored[:5]],
    ]
    assert stored[0] == QUESTION
    assert outline(stored[1:]) == [
        'assistant: {"a": 2, "b": 3}', "tool: 5", 'assistant: {"a": 5, "b": 4}', "tool: 9", "assistant: It is 9.",
    ]  # fmt: skip
    assert (data["payload"]["turn"], data["payload"]["output"]) == (3, "It is 9.")


async def test_spec_A13_the_context_is_saved_after_each_turn(system: System, llmock: LLMock) -> None:
    """A tool looks at what is stored while its own turn is under way: the turns before it, and nothing of this one."""
    saved: list[tuple[int, int]] = []

    async def add_up(a: int, b: int, execution_ctx: ExecutionContext) -> str:
        """Add two numbers."""
        data = await system.data(execution_ctx.task_id)
        assert data["status"] == "processing"
        saved.append((data["payload"]["turn"], len(data["payload"]["messages"])))
        return str(a + b)

    llmock.call_tool("add_up", {"a": 2, "b": 3}).call_tool("add_up", {"a": 5, "b": 4}).reply("It is 9.")
    agent = adder(tools=[add_up])
    await system.start(agent)
    await system.ended(await system.submit(agent, QUESTION["content"]), 30)
    assert saved == [(0, 1), (1, 3)]


async def test_spec_A13_the_same_lifecycle_inline(system: System, llmock: LLMock) -> None:
    """But for `run_enqueued`, the events are those of a worker, and so are the requests."""
    script(llmock)
    heard: list[BaseEvent] = []
    completion = await adder().run_inline(AgentContext(query=QUESTION["content"]), heard.append)
    assert [event.event_type for event in heard] == [
        "run_started",
        *A_TURN_WITH_A_TOOL,
        *A_TURN_WITH_A_TOOL,
        *THE_LAST_TURN,
    ]
    stored = completion.context.messages
    assert [len(request.body["messages"]) for request in llmock.requests] == [2, 4, 6]
    assert llmock.last_request.body["messages"] == [SYSTEM, *stored[:5]]
    assert completion.output == "It is 9." and completion.context.turn == 3


async def test_spec_A13_a_run_ends_at_max_turns(system: System, llmock: LLMock) -> None:
    for number in range(3):
        llmock.call_tool("add", {"a": number, "b": 1})
    agent = adder(max_turns=2)
    await system.start(agent)
    task_id = await system.submit(agent)
    await system.ended(task_id, 30)
    assert await system.types(task_id, progress=True) == [
        "run_enqueued",
        "run_started",
        *A_TURN_WITH_A_TOOL,
        *A_TURN_WITH_A_TOOL,
        "task_failed",
        "run_failed",
    ]


async def test_spec_A13_any_process_may_take_the_next_turn(system: System, llmock: LLMock) -> None:
    """The first process is asked to leave in the first turn; another one goes on, and no request is made twice."""

    async def add_up(a: int, b: int) -> str:
        """Add two numbers."""
        first.lifeline.draining.set()
        return str(a + b)

    llmock.call_tool("add_up", {"a": 2, "b": 3}).call_tool("add_up", {"a": 5, "b": 4}).reply("It is 9.")
    agent = adder(tools=[add_up])
    first = await system.start(agent, process="p1")
    task_id = await system.submit(agent, QUESTION["content"])
    await asyncio.wait_for(first.lifeline.draining.wait(), 20)
    await first.drain()
    await system.start(agent, process="p2")
    data = await system.ended(task_id, 30)
    assert data["payload"]["output"] == "It is 9."
    assert [len(request.body["messages"]) for request in llmock.requests] == [2, 4, 6]
    asked = [
        event["metadata"]["process"]
        for event in await system.events(task_id)
        if event["event_type"] == "progress_update_completion_completed"
    ]
    assert asked == ["p1", "p2", "p2"]
