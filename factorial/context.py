"""The two contexts of a turn: the agent's own state, and what is known about its execution.

`AgentContext` is stored with the task and travels with it (checklist C01, C02). `ExecutionContext` is made
anew by whoever takes the task up, and is not stored (C04).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from factorial.errors import FactorialError
from factorial.events import EventPublisher

__all__ = ["AgentContext", "ExecutionContext", "opening_messages"]


class AgentContext(BaseModel):
    """The state of a run: the question, the conversation, the turn, and in the end the output.

    Extend it with fields of your own; anything pydantic can write as JSON keeps its type on the way through
    Redis. Extra fields given to the constructor are kept.
    """

    model_config = ConfigDict(extra="allow")

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


def opening_messages(context: AgentContext) -> list[dict[str, Any]]:
    """The conversation with which a run over `context` begins: its messages, and the query as the user's next one."""
    if context.turn or not context.query:
        return list(context.messages)
    return [*context.messages, {"role": "user", "content": context.query}]


_current: ContextVar["ExecutionContext"] = ContextVar("factorial_execution_context")


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
        context = _current.get(None)
        if context is None:
            raise FactorialError(
                "ExecutionContext.current() works only while an agent takes a turn: "
                "call it in a tool, in an overridden agent method, or in what these call"
            )
        return context

    @contextmanager
    def active(self) -> Iterator["ExecutionContext"]:
        """Make this the current context within a `with` block: for Factorial's own use."""
        token = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(token)

    @classmethod
    def get(cls) -> "ExecutionContext | None":
        """The context of the turn that is being executed, or None outside of one."""
        return _current.get(None)
