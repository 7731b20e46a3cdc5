"""The agent of `examples/repository.py`, slowed down, and with a witness that records every call that is made.

Overriding `completion` and `tool_action` is enough: calls that an earlier process finished are recalled from the
journal, and these methods are not called for them again.
"""

import asyncio
import random
from typing import TYPE_CHECKING, Any

from examples.quickstart import witness
from examples.repository import RepositoryAgent
from factorial import AgentContext, FunctionToolActionResult

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion, ChatCompletionMessageToolCall


class WitnessedAgent(RepositoryAgent):
    """Records each call before it is made."""

    async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> "ChatCompletion":
        witness.note(self.get_execution_context(), agent_ctx.turn, witness.MODEL_CALL)
        return await super().completion(agent_ctx, messages)

    async def tool_action(
        self, tool_call: "ChatCompletionMessageToolCall", agent_ctx: AgentContext
    ) -> FunctionToolActionResult:
        witness.note(self.get_execution_context(), agent_ctx.turn, tool_call.id)
        await asyncio.sleep(random.uniform(0.1, 0.5))  # a kill could not hit tools that finish at once
        return await super().tool_action(tool_call, agent_ctx)


agent = WitnessedAgent()
