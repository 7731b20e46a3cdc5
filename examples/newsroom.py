"""A task that awaits others: an editor sends a reporter for each topic, then asks a person before anything is printed.

python -m examples.newsroom               the workers of both agents, until Ctrl-C
python -m examples.newsroom ask           in another terminal: the person answers; it may take an hour
"""

import asyncio
import os
import sys
from typing import Any

from examples.model import WHO_ANSWERS, model_or
from factorial import Agent, AgentContext, Batch, ExecutionContext, Orchestrator, deferred_result, forking_tool
from factorial.testing import Reply, ScriptedModel, call, say


def report(messages: Any) -> Reply:
    return say(f"All quiet about {messages[-1]['content']}.")


reporter = Agent(
    name="reporter",
    instructions="You report on a topic in one sentence.",
    model=model_or(ScriptedModel(report, delay=0.5)),
)


@forking_tool(timeout=600)
async def send_reporters(topics: list[str], execution_ctx: ExecutionContext) -> Batch:
    """Have each topic reported on."""
    return await execution_ctx.spawn_child_tasks(reporter, [AgentContext(query=topic) for topic in topics])


@deferred_result(timeout=3600)
def ask_the_publisher(headline: str) -> None:
    """Ask whether a headline may be printed. The answer may take a while."""
    # A real program would send a mail or open a ticket here, with execution_ctx.task_id and execution_ctx.tool_call_id.


SCRIPT = [
    call("send_reporters", topics=["the harbour", "the theatre"]),
    call("ask_the_publisher", headline="All quiet in town"),
    say("It is settled."),
]
editor = Agent(
    name="editor",
    instructions="You make the front page: send reporters, then ask the publisher about the headline.",
    tools=[send_reporters, ask_the_publisher],
    model=model_or(ScriptedModel(SCRIPT)),
    max_turns=10,
)

orchestrator = Orchestrator(redis_url=os.environ.get("REDIS_URL") or "embedded:.factorial")
orchestrator.register_runner(agent=editor)
orchestrator.register_runner(agent=reporter)


async def ask() -> None:
    print(WHO_ANSWERS)
    task = await orchestrator.enqueue_task(
        agent=editor, owner_id="user123", payload=AgentContext(query="What is on the front page?")
    )
    async for update in orchestrator.subscribe_to_updates(owner_id="user123", task_ids=[task.id]):
        match update["event_type"]:
            case "batch_progress":
                print(f"{update['completed_tasks']} of {update['total_tasks']} reporters are back")
            case "task_pending_tool_call_results":
                answer = await asyncio.to_thread(input, "May it be printed? ")
                for tool_call_id in update["data"]["tool_call_ids"]:
                    await orchestrator.complete_deferred_tool(task.id, tool_call_id, answer)
            case "agent_output":
                print(update["data"])
                break


if __name__ == "__main__":
    if sys.argv[1:] == ["ask"]:
        asyncio.run(ask())
    else:
        orchestrator.run()
