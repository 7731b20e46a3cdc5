"""An editor who sends out fact finders, written for nfactorial 0.1.31: `python agent.py` runs the workers."""
# ruff: noqa: RUF012  # pydantic gives each context a copy of a default

import os
from typing import Any

from factorial import (
    Agent,
    AgentContext,
    AgentWorkerConfig,
    BaseAgent,
    MaintenanceWorkerConfig,
    MetricsTimelineConfig,
    ModelSettings,
    ObservabilityConfig,
    Orchestrator,
    TaskTTLConfig,
    gpt_41,
    gpt_41_mini,
)
from factorial.context import ExecutionContext
from factorial.tools import forking_tool
from factorial.utils import BaseModel

ARCHIVE = {
    "whales": [{"source": "Moby-Dick", "year": 1851}, {"source": "Ishmael's log", "year": 1850}],
    "ships": [{"source": "The Pequod", "year": 1840}],
}


class Facts(BaseModel):
    facts: list[str]


class Report(BaseModel):
    headline: str
    text: str


def look_up(subject: str) -> tuple[str, list[dict[str, Any]]]:
    """Look a subject up in the archive."""
    if subject not in ARCHIVE:
        raise KeyError(subject)
    entries = ARCHIVE[subject]
    return f"{len(entries)} entries on {subject}", entries


fact_finder = Agent(
    name="fact_finder",
    description="Finds facts on one question",
    instructions="You find facts. Look the subject up before you answer.",
    model=gpt_41_mini,
    model_settings=ModelSettings[AgentContext](temperature=0.2, tool_choice="required"),
    tools=[look_up],
    output_type=Facts,
    max_turns=5,
)


class StoryContext(AgentContext):
    outline: list[str] = []
    sent_out: bool = False


def outline(title: str, points: list[str], agent_ctx: StoryContext) -> tuple[str, dict[str, Any]]:
    """Write down how the story will go."""
    agent_ctx.outline = points
    return f"{title}: {len(points)} points", {"title": title, "points": points}


@forking_tool(timeout=300, is_enabled=lambda agent_ctx: not agent_ctx.sent_out)
async def send_out(
    questions: list[str],
    agent_ctx: StoryContext,
    execution_ctx: ExecutionContext,
) -> tuple[str, list[str]]:
    """Send out a fact finder for each question."""
    agent_ctx.sent_out = True
    batch = await execution_ctx.spawn_child_tasks(fact_finder, [AgentContext(query=one) for one in questions])
    return f"{len(batch.task_ids)} fact finders are back", batch.task_ids


class Editor(BaseAgent[StoryContext]):
    def __init__(self):
        super().__init__(
            name="editor",
            description="Writes stories",
            instructions="You write stories. Begin with an outline.",
            model=gpt_41,
            model_settings=ModelSettings[StoryContext](
                tool_choice=lambda agent_ctx: (
                    {"type": "function", "function": {"name": "outline"}} if not agent_ctx.outline else "required"
                ),
                parallel_tool_calls=False,
            ),
            tools=[outline, send_out],
            context_class=StoryContext,
            output_type=Report,
            max_turns=8,
        )


editor = Editor()

orchestrator = Orchestrator(
    redis_host=os.getenv("REDIS_HOST", "localhost"),
    redis_port=int(os.getenv("REDIS_PORT", "6379")),
    redis_db=0,
    redis_max_connections=500,
    openai_api_key=os.getenv("OPENAI_API_KEY"),
    observability_config=ObservabilityConfig(enabled=True, host="0.0.0.0", port=8081, cors_origins=["*"]),
)
orchestrator.register_runner(
    agent=editor,
    agent_worker_config=AgentWorkerConfig(workers=3, batch_size=10, max_retries=5, turn_timeout=120),
    maintenance_worker_config=MaintenanceWorkerConfig(
        interval=5,
        workers=1,
        task_ttl=TaskTTLConfig(completed_ttl=3600, failed_ttl=7200, cancelled_ttl=600),
        metrics_timeline=MetricsTimelineConfig(bucket_size="minutes"),
    ),
)
orchestrator.register_runner(
    agent=fact_finder,
    agent_worker_config=AgentWorkerConfig(
        workers=3,
        batch_size=10,
        heartbeat_interval=2,
        missed_heartbeats_threshold=3,
        missed_heartbeats_grace_period=1,
    ),
)

if __name__ == "__main__":
    orchestrator.run()
