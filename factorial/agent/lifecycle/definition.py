"""What the lifecycle needs to know of an agent. `BaseAgent` fits; the lifecycle does not import it."""

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from factorial.agent.callbacks import Callback
from factorial.agent.completion import TurnCompletion
from factorial.agent.lifecycle.guard import Guard
from factorial.context import AgentContext, ContextType
from factorial.tools import FunctionTool, FunctionToolActionResult

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion, ChatCompletionMessageToolCall

__all__ = ["AgentDefinition", "Spawnable"]


@runtime_checkable
class Spawnable(Protocol):
    """An agent as the parent of its task sees it."""

    @property
    def name(self) -> str:
        """What the agent is called in queues, events and logs."""
        ...

    @property
    def max_turns(self) -> int | None:
        """The most turns of a task of the agent."""
        ...

    def accepted_payload(self, payload: object) -> AgentContext:
        """`payload` as a context of the agent's class. Raises `ContextError` if a task cannot be over it."""
        ...


class AgentDefinition(Spawnable, Protocol[ContextType]):
    """An agent as the lifecycle sees it. The attributes are those of `BaseAgent`."""

    context_class: type[ContextType]
    tools: dict[str, FunctionTool]
    final_output: FunctionTool | None
    max_turns: int | None
    output_retries: int
    stream: bool
    incomplete_answers: Literal["error", "mark"]
    guards: Sequence[Guard]
    on_run_start: Callback
    on_run_end: Callback
    on_turn_start: Callback
    on_turn_end: Callback
    on_pending_tool_call: Callback
    on_pending_tool_results: Callback
    on_run_cancelled: Callback

    def check_ready(self) -> None:
        """Raise `ConfigError` if the agent cannot work as it is."""
        ...

    def messages_to_send(self, agent_ctx: ContextType) -> list[dict[str, Any]]:
        """The messages of the next model call."""
        ...

    async def run_turn(self, agent_ctx: ContextType) -> TurnCompletion[ContextType]:
        """Take one turn."""
        ...

    async def completion(self, agent_ctx: ContextType, messages: list[dict[str, Any]]) -> "ChatCompletion":
        """Ask the model."""
        ...

    def validate_completion(self, agent_ctx: ContextType, response: "ChatCompletion") -> Awaitable[None] | None:
        """Raise if the answer is not to be used."""
        ...

    async def tool_action(
        self, tool_call: "ChatCompletionMessageToolCall", agent_ctx: ContextType
    ) -> FunctionToolActionResult:
        """Run a tool."""
        ...

    def process_child_task_results(
        self, agent_ctx: ContextType, child_task_results: list[tuple[str, Any]]
    ) -> TurnCompletion[ContextType] | str | Awaitable[TurnCompletion[ContextType] | str]:
        """Add what the model reads of these children to the conversation, or return it."""
        ...

    def is_final_output(self, tool_call: "ChatCompletionMessageToolCall") -> bool:
        """Whether the model ends the run with this call."""
        ...
