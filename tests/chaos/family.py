"""Agents that wait for each other: a parent whose first turn spawns ten children, or as many as its query says, whose
second asks somebody outside, and who then answers. Every tool call that is executed is witnessed.
"""

import asyncio
from collections import Counter
from typing import Any

from factorial import Agent, AgentContext, Batch, ExecutionContext, deferred_result, forking_tool
from factorial.testing import Reply, ScriptedModel, call, say
from tests.chaos.agents import witnessed
from tests.chaos.system import OWNER, System
from tests.sub_tasks import ends

CHILDREN = 10

CHILD_RUNNER = """
[[runner]]
agent = "tests.chaos.family:child"
processes = 2
worker = { workers = 6, batch_size = 10, heartbeat_interval = 3.0, missed_heartbeats = 2 }
maintenance = { interval = 0.25 }
"""
"""Of the configuration of a system, beside the runner of the parents."""


async def look(agent_ctx: AgentContext) -> str:
    """Look."""
    with witnessed("look", agent_ctx.turn):
        await asyncio.sleep(0.1)
    return "seen"


def child_script(messages: Any) -> Reply:
    answers = sum(message["role"] == "assistant" for message in messages)
    return call("look") if answers < 2 else say(f"{messages[0]['content']} seen")


child = Agent(name="child", tools=[look], model=ScriptedModel(child_script, delay=0.05))


@forking_tool(timeout=300)
async def send_children(agent_ctx: AgentContext, execution_ctx: ExecutionContext) -> Batch:
    """Have all corners looked into."""
    with witnessed("send", agent_ctx.turn):
        count = int(agent_ctx.query) if agent_ctx.query.isdigit() else CHILDREN
        corners = [AgentContext(query=f"corner {number}") for number in range(count)]
        return await execution_ctx.spawn_child_tasks(child, corners)


@deferred_result(timeout=300)
async def ask(agent_ctx: AgentContext) -> None:
    """Ask somebody outside."""
    with witnessed("ask", agent_ctx.turn):
        await asyncio.sleep(0.05)


def parent_script(messages: Any) -> Reply:
    match sum(message["role"] == "assistant" for message in messages):
        case 0:
            return call("send_children")
        case 1:
            return call("ask")
    seen = sum(end.kind == "result" for end in ends(messages[2]["content"]))
    return say(f"{seen} corners seen, and I was told: {messages[4]['content']}")


parent = Agent(name="parent", tools=[send_children, ask], model=ScriptedModel(parent_script, delay=0.05))


async def answer_all(system: System, answered: Counter[str]) -> None:
    """Somebody outside, who gives each answer twice."""
    async for event in system.orchestrator.subscribe_to_updates(
        OWNER, event_types=["task_pending_tool_call_results"], after="0"
    ):
        for call_id in event["data"]["tool_call_ids"]:
            for _ in range(2):
                kept = await system.orchestrator.complete_deferred_tool(event["task_id"], call_id, "yes")
                answered[event["task_id"]] += kept
