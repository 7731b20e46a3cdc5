"""The two contexts of a turn: the agent's own state, and what is known about its execution.

`AgentContext` is stored with the task and travels with it (checklist C01, C02). `ExecutionContext` is made
anew by whoever takes the task up, and is not stored (C04).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict

from factorial.errors import FactorialError
from factorial.events import EventPublisher

__all__ = ["AgentContext", "Batch", "ContextType", "ExecutionContext", "execution_context", "opening_messages"]


class AgentContext(BaseModel):
    """The state of a run: the question, the conversation, the turn, and in the end the output.

    Extend it with fields of your own; anything pydantic can write as JSON keeps its type on the way through
    Redis. Extra fields given to the constructor are kept.
    """

    # A field may have a type that pydantic does not know, as long as nothing of it has to be stored.
    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)

    query: str
    """What the user asks. It becomes the first user message of the run."""
    messages: list[dict[str, Any]] = []
    """The conversation in the provider's wire format, without the instructions."""
    turn: int = 0
    """How many turns are finished."""
    output: Any = None
    """The final output, once there is one."""

    def to_dict(self) -> dict[str, Any]:
        """The context as plain JSON data."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The context that `to_dict` wrote."""
        return cls.model_validate(data)

    def to_json(self) -> str:
        """The context as JSON text."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, json_str: str | bytes) -> Self:
        """The context that `to_json` wrote."""
        return cls.model_validate_json(json_str)


ContextType = TypeVar("ContextType", bound=AgentContext)
"""The class of an agent's contexts, for type annotations: `class MyAgent(BaseAgent[ContextType])`."""


def opening_messages(context: AgentContext) -> list[dict[str, Any]]:
    """The conversation with which a run over `context` begins: its messages, and the query as the user's next one."""
    if context.turn or not context.query:
        return list(context.messages)
    return [*context.messages, {"role": "user", "content": context.query}]


execution_context: ContextVar["ExecutionContext"] = ContextVar("factorial_execution_context")
"""The context of the turn that is being executed: `ExecutionContext.current()` reads it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Tasks that were spawned together (checklist T03). `orchestrator.get_batch_data(id)` tells how far they are."""

    id: str
    task_ids: list[str]


class _Spawner(Protocol):
    """What begins the children: the steps of the turn."""

    async def spawn(
        self, execution: "ExecutionContext", agent: Any, contexts: Sequence[AgentContext], *, as_batch: bool
    ) -> Batch: ...


class _AgentOf(Protocol[ContextType]):
    """An agent, as far as its children's parent has to know it."""

    name: str
    context_class: type[ContextType]


@dataclass(slots=True)
class ExecutionContext:
    """What an agent and its tools may know about the execution they are part of."""

    task_id: str
    owner_id: str
    events: EventPublisher
    agent_name: str = ""
    retries: int = 0
    """Failed attempts at the present turn that were retried."""
    pickups: int = 1
    """How many times a worker has taken the task up: more than 1 after a retry, a release or a crash."""
    iterations: int = 0
    """Turns begun since this worker took the task up."""
    process: str = ""
    """The process that executes the task."""
    tool_call_id: str = ""
    """Within a tool: the id of the call. Whoever is to give a deferred tool's result needs it, and `task_id`."""
    idempotency_key: str = field(default="", repr=False)
    """Within a tool: the same on every execution of the same tool call, also after a crash. Hand it to
    services that can refuse a second order."""
    step: str = field(default="", repr=False)
    """What is being done within the turn: `completion`, `tool_action`, or nothing."""
    run: Any = field(default=None, repr=False)
    """The run this context belongs to: for Factorial's own use."""

    @classmethod
    def current(cls) -> "ExecutionContext":
        """The context of the turn that is being executed. Raises `FactorialError` outside of one."""
        context = execution_context.get(None)
        if context is None:
            raise FactorialError(
                "ExecutionContext.current() works only while an agent takes a turn: "
                "call it in a tool, in an overridden agent method, or in what these call"
            )
        return context

    async def spawn_child_task(self, agent: _AgentOf[ContextType], payload: ContextType) -> str:
        """Begin a task of `agent` over `payload`, as a child of this one, and give its id (checklist T03).

        It has this task's owner. If this task is cancelled, it is cancelled, too. A `forking_tool` that returns the id
        has this task wait for it; otherwise nobody does. If the step that spawns it is executed again, the id is the
        same, and nothing is spawned twice. Raises `ContextError` if the payload does not fit, and `RetryableError` if
        it could not be stored.
        """
        batch = await self._steps().spawn(self, agent, [payload], as_batch=False)
        return batch.task_ids[0]

    async def spawn_child_tasks(self, agent: _AgentOf[ContextType], payloads: Sequence[ContextType]) -> Batch:
        """Begin a task of `agent` over each of `payloads`: a batch, whose progress is published (checklist T03).

        `batch_progress` comes with each whole percent, and `batch_completed` with the end of the last one. At most
        10,000 at once. Otherwise as `spawn_child_task`.
        """
        return await self._steps().spawn(self, agent, payloads, as_batch=True)

    def _steps(self) -> "_Spawner":
        if self.run is None:
            raise FactorialError("tasks can be spawned only while an agent takes a turn")
        steps: _Spawner = self.run.steps
        return steps

    @contextmanager
    def active(self) -> Iterator["ExecutionContext"]:
        """Make this the current context within a `with` block: for Factorial's own use."""
        token = execution_context.set(self)
        try:
            yield self
        finally:
            execution_context.reset(token)

    @classmethod
    def get(cls) -> "ExecutionContext | None":
        """The context of the turn that is being executed, or None outside of one."""
        return execution_context.get(None)
