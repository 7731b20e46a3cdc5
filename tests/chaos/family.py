"""Agents that wait for each other: a parent whose first turn spawns ten children, or as many as its query says, whose
second asks somebody outside, and who then answers. Every tool call that is executed is witnessed.
"""

import asyncio
import json
from typing import Any

from factorial import Agent, AgentContext, Batch, ExecutionContext, deferred_result, forking_tool
from factorial.testing import Reply, ScriptedModel, call, say
from tests.chaos.agents import witnessed

CHILDREN = 10


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
    seen = sum(one["status"] == "completed" for one in json.loads(messages[2]["content"]))
    return say(f"{seen} corners seen, and I was told: {messages[4]['content']}")


parent = Agent(name="parent", tools=[send_children, ask], model=ScriptedModel(parent_script, delay=0.05))
