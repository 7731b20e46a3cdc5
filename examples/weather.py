"""Worker processes, a task, and its events.

python -m examples.weather          the workers, until Ctrl-C
python -m examples.weather ask      in another terminal: a task, and its result
"""

import asyncio
import os
import sys

from examples.model import WHO_ANSWERS, model_or
from factorial import Agent, AgentContext, AgentWorkerConfig, Orchestrator
from factorial.testing import ScriptedModel, call, say


def get_weather(city: str) -> str:
    """Get weather for a city"""
    return f"The weather in {city} is sunny and 72°F"


# Create an agent
weather_agent = Agent(
    name="weather",
    description="Weather Assistant",
    instructions="You help users get weather information.",
    tools=[get_weather],
    stream=True,  # the page of examples.web shows the answer while it arrives
    model=model_or(ScriptedModel([call("get_weather", city="San Francisco"), say("It is sunny, and 72°F.")])),
)

# Set up orchestrator: with an embedded Valkey, unless REDIS_URL names a server
orchestrator = Orchestrator(redis_url=os.environ.get("REDIS_URL") or "embedded:.factorial")
orchestrator.register_runner(
    agent=weather_agent,
    agent_worker_config=AgentWorkerConfig(workers=2, batch_size=10),
)


async def ask() -> None:
    print(WHO_ANSWERS)

    # Enqueue a task
    task = weather_agent.create_task(
        owner_id="user123",
        payload=AgentContext(query="What's the weather in San Francisco?"),
    )
    await orchestrator.enqueue_task(agent=weather_agent, task=task)

    # Subscribe to results: events from before the subscription are delivered, too
    async for update in orchestrator.subscribe_to_updates(owner_id="user123"):
        if update["event_type"] == "agent_output":
            print(f"Result: {update['data']}")
            break


if __name__ == "__main__":
    if sys.argv[1:] == ["ask"]:
        asyncio.run(ask())
    else:
        orchestrator.run()
