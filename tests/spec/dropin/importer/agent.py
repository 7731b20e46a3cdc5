"""An agent that summarises documents, written for nfactorial 0.1.31: `python agent.py` runs the workers."""

import os

from factorial import Agent, AgentContext, AgentWorkerConfig, ModelSettings, Orchestrator, gpt_41_mini, tool


@tool(name="read", description="Read a document")
def read_document(number: int) -> str:
    if number == 13:
        raise FileNotFoundError(f"document {number} is missing")
    return f"This is document {number}."


agent = Agent(
    name="summarizer",
    instructions="You summarize documents.",
    model=gpt_41_mini,
    tools=[read_document],
    model_settings=ModelSettings[AgentContext](temperature=0.0),
    max_turns=4,
)

orchestrator = Orchestrator(
    redis_host=os.getenv("REDIS_HOST", "localhost"),
    redis_port=int(os.getenv("REDIS_PORT", 6379)),
    redis_max_connections=50,
    openai_api_key=os.getenv("OPENAI_API_KEY"),
)
orchestrator.register_runner(agent=agent, agent_worker_config=AgentWorkerConfig(workers=2, batch_size=5))

if __name__ == "__main__":
    orchestrator.run()
