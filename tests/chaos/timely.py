"""An agent that depends on the time: it asks somebody who never answers, until a deadline, and then fails once, to be
tried again after a pause.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from factorial import AgentContext, BaseAgent, ExecutionContext, RetryableError, deferred_result
from factorial.testing import ScriptedModel, call, say
from tests.chaos.agents import witnessed

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

DEADLINE = 0.6
"""Seconds for which an answer is waited for."""


@deferred_result(timeout=DEADLINE)
async def ask(agent_ctx: AgentContext) -> None:
    """Ask somebody outside."""


class Timely(BaseAgent[AgentContext]):
    """The query is how long its first model call takes, in seconds; done again, it takes no time."""

    async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> "ChatCompletion":
        execution = ExecutionContext.current()
        with witnessed("model", agent_ctx.turn):
            if agent_ctx.turn == 0 and execution.pickups == 1:
                await asyncio.sleep(float(agent_ctx.query))
        if agent_ctx.turn == 1 and execution.retries == 0:
            raise RetryableError("not the first time")
        return await super().completion(agent_ctx, messages)


timely = Timely(
    name="timely", tools=[ask], context_class=AgentContext, model=ScriptedModel([call("ask"), say("it is late")])
)
