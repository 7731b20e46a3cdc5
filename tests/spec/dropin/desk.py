"""A newsroom's agent, written for nfactorial 0.1.x."""
# ruff: noqa: RUF012  # pydantic gives each context a copy of a default

import os
from typing import Any

from pydantic import BaseModel

from factorial import (
    AgentContext,
    AgentEvent,
    BaseAgent,
    ExecutionContext,
    FunctionToolActionResult,
    ModelSettings,
    MultiClient,
    TurnCompletion,
    function_tool,
    gpt_41,
    gpt_41_mini,
    publish_progress,
    retry,
)
from factorial.exceptions import RetryableError
from factorial.llms import Model
from factorial.logging import get_logger
from factorial.utils import serialize_data

logger = get_logger(__name__)

client = MultiClient(
    openai_api_key=os.getenv("NEWSROOM_OPENAI_KEY"),
    xai_api_key=os.getenv("NEWSROOM_XAI_KEY"),
    anthropic_api_key=os.getenv("NEWSROOM_ANTHROPIC_KEY"),
    max_connections=1500,
    max_keepalive_connections=1000,
)


class Source(BaseModel):
    title: str
    year: int


class Article(BaseModel):
    headline: str
    words: int


class DeskContext(AgentContext):
    topic: str = ""
    sources: list[Source] = []
    checked: bool = False


def choose_model(agent_ctx: DeskContext) -> Model:
    return gpt_41 if agent_ctx.turn == 0 else gpt_41_mini


def write_instructions(agent_ctx: DeskContext, execution_ctx: ExecutionContext) -> str:
    return f"You write about {agent_ctx.topic} for {execution_ctx.owner_id}."


def search(words: str, sources: list[Source], agent_ctx: DeskContext) -> tuple[str, Any]:
    """Search the archive."""
    agent_ctx.sources.extend(sources)
    return f"{len(sources)} sources on {words}", serialize_data(sources)


async def check(fact: str, agent_ctx: DeskContext, execution_ctx: ExecutionContext) -> FunctionToolActionResult:
    """Check a fact."""
    agent_ctx.checked = True
    return FunctionToolActionResult(output_str="It is true.", output_data={"task": execution_ctx.task_id})


@function_tool(
    name="print_it",
    description="Print the article",
    strict_json_schema=False,
    is_enabled=lambda agent_ctx: agent_ctx.checked,
)
def print_article(copies: int) -> str:
    return f"printed {copies}"


class Desk(BaseAgent[DeskContext]):
    def __init__(self) -> None:
        super().__init__(
            description="Writes articles",
            instructions=write_instructions,
            tools=[search, check, print_article],
            model=choose_model,
            model_settings=ModelSettings[DeskContext](
                temperature=lambda agent_ctx: 0.0 if agent_ctx.turn == 0 else 1.0,
                parallel_tool_calls=False,
            ),
            context_class=DeskContext,
            output_type=Article,
            max_turns=10,
            client=client,
            request_timeout=60.0,
        )
        self.stumbles = 1

    async def run_turn(self, agent_ctx: DeskContext) -> TurnCompletion[DeskContext]:
        execution_ctx = ExecutionContext.current()
        if agent_ctx.turn == 0:
            await self.look_up(agent_ctx.topic)
        await execution_ctx.events.publish_event(
            AgentEvent(
                event_type="desk_at_work",
                task_id=execution_ctx.task_id,
                owner_id=execution_ctx.owner_id,
                agent_name=self.name,
                turn=agent_ctx.turn,
                data={"iterations": execution_ctx.iterations},
            )
        )
        return await super().run_turn(agent_ctx)

    @publish_progress(func_name="archive", include_context=False)
    @retry(max_attempts=3, delay=0.01, jitter=False)
    async def look_up(self, topic: str) -> str:
        if self.stumbles:
            self.stumbles -= 1
            raise RetryableError("the archive is closed")
        logger.info("looked up %s", topic)
        return topic.upper()


desk = Desk()
