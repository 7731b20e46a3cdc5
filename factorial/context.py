"""The two contexts of a turn: the agent's own state, and what is known about its execution.

`AgentContext` is stored with the task and travels with it. `ExecutionContext` is made by the process that executes the
task, and is not stored.

`Scope` and `scope` are for Factorial's own use: they tie an `ExecutionContext` to the run that is executed.
"""

from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, ParamSpec, Protocol, Self, TypeVar, overload

from pydantic import BaseModel, ConfigDict, Field

from factorial._core.conversation import answered
from factorial.errors import FactorialError
from factorial.events import EventPublisher

__all__ = [
    "AgentContext", "Batch", "BatchMetadata", "ContextType", "ExecutionContext", "execution_context", "note_attempt",
    "opening_messages",
]  # fmt: skip

_P = ParamSpec("_P")
_T = TypeVar("_T")


class AgentContext(BaseModel):
    """The state of a run: the question, the conversation, the turn, and in the end the output.

    Extend it with fields of your own; anything pydantic can write as JSON keeps its type on the way through
    Redis. Extra fields given to the constructor are kept.
    """

    # A field may have a type that pydantic does not know, as long as nothing of it has to be stored.
    # Infinities and NaN are written by these names, so that they come back from Redis.
    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="allow", arbitrary_types_allowed=True, ser_json_inf_nan="constants"
    )

    query: str
    """What the user asks. It becomes the first user message of the run, and may not be empty."""
    messages: list[dict[str, Any]] = []
    """The conversation in the provider's wire format, without the instructions."""
    turn: int = 0
    """How many turns are finished."""
    output: Any = None
    """The final output, once there is one."""
    attempt: int = Field(default=0, exclude=True)
    """How many attempts at the present turn, or at the present call of a method with `@retry`, have failed. It is not
    stored."""

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


def note_attempt(context: AgentContext, attempt: int) -> None:
    """Set `context.attempt`, unless its class has a field of its own by this name: for Factorial's own use."""
    if type(context).model_fields["attempt"].exclude:
        context.__dict__["attempt"] = attempt


def opening_messages(context: AgentContext) -> list[dict[str, Any]]:
    """The conversation with which a run over `context` begins: its messages, and the query as the user's next one.

    The messages may be those of a run that ended in the middle of a turn: open tool calls are answered. A context that
    has taken turns has its query among its messages already, unless it was given a new one.
    """
    messages = answered(context.messages)
    if context.turn and any(
        message.get("role") == "user" and message.get("content") == context.query for message in messages
    ):
        return messages
    return [*messages, {"role": "user", "content": context.query}]


execution_context: ContextVar["ExecutionContext"] = ContextVar("factorial_execution_context")
"""The context of the turn that is being executed: `ExecutionContext.current()` reads it."""


@dataclass(slots=True)
class BatchMetadata:
    """Whose batch it is, and what was known of it when this object was made."""

    owner_id: str = ""
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    total_tasks: int = 0
    max_progress: int = 0
    """What its progress counts up to: the number of tasks, or of turns if their agent has `max_turns`."""
    status: str = "active"
    """`active`, `completed` or `cancelled`."""
    parent_id: str | None = None
    """The task that spawned it."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data; `created_at` in seconds since 1970."""
        return {
            "owner_id": self.owner_id,
            "parent_id": self.parent_id,
            "created_at": self.created_at.timestamp(),
            "total_tasks": self.total_tasks,
            "max_progress": self.max_progress,
            "status": self.status,
        }


@dataclass(frozen=True, slots=True)
class Batch:
    """Tasks that were spawned or enqueued together. `orchestrator.get_batch_data(id)` says how many have ended."""

    id: str
    task_ids: list[str]
    metadata: BatchMetadata = field(default_factory=BatchMetadata, compare=False)


class AgentOf(Protocol[ContextType]):
    """An agent, as far as the parent of its tasks has to know it."""

    name: str
    context_class: type[ContextType]


class Scope(Protocol):
    """Where in a run the present code is executed. `agent/lifecycle/steps.py` implements it."""

    @property
    def turn(self) -> int:
        """The turn that is being taken."""
        ...

    async def step(
        self, name: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call `function` once, and keep its result."""
        ...

    def step_sync(self, name: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The same from a thread that is not the event loop's."""
        ...

    def progress(self, fraction: float, text: str) -> None:
        """Publish how far a step is."""
        ...

    async def spawn(self, agent: Any, payloads: Sequence[AgentContext], *, as_batch: bool) -> Batch:
        """Spawn a task of `agent` for each payload."""
        ...


scope: ContextVar[Scope | None] = ContextVar("factorial_scope", default=None)
"""The scope of the present code; None outside of a run."""


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
    """How many times a worker has claimed the task: more than 1 after a retry, a release or a crash."""
    iterations: int = 0
    """Turns begun since this worker claimed the task."""
    process: str = ""
    """The process that executes the task."""
    tool_call_id: str = ""
    """Within a tool: the id of the call. A deferred tool's result is delivered with it and `task_id`."""
    idempotency_key: str = field(default="", repr=False)
    """Within a step: the same on every execution of the step, also after a crash. Pass it to services that can refuse
    a second order."""

    @property
    def current_tool_call_id(self) -> str:
        """`tool_call_id` by its other name."""
        return self.tool_call_id

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

    @classmethod
    def get(cls) -> "ExecutionContext | None":
        """The context of the turn that is being executed, or None outside of one."""
        return execution_context.get(None)

    def progress(self, fraction: float, text: str = "") -> Awaitable[None]:
        """Publish the event `tool_progress`: a tool has done `fraction` of its work, from 0 to 1.

        Works in async tools and in plain ones, which run in a thread. Returns at once; the result may be awaited, which
        changes nothing. `text` says what is being done, and is cut to 1,000 characters. The first 100 reports of a call
        are all published, and then one a second. Raises `ConfigError` for a `fraction` that is not from 0 to 1, and
        `FactorialError` outside of a run.
        """
        _scope("progress can be reported").progress(fraction, text)
        return _Done()

    async def spawn_child_task(self, agent: AgentOf[ContextType], payload: ContextType) -> str:
        """Spawn a task of `agent` over `payload`, as a child of this one. Returns its id.

        The child has this task's owner, and is cancelled with it. A `forking_tool` that returns the id makes this task
        wait for the child; otherwise nothing waits for it. If the step that spawns it is executed again, the id is the
        same, and nothing is spawned twice. Raises `ContextError` if the payload does not fit, and `RetryableError` if
        it could not be stored.
        """
        batch = await _scope("a task can be spawned").spawn(agent, [payload], as_batch=False)
        return batch.task_ids[0]

    async def spawn_child_tasks(self, agent: AgentOf[ContextType], payloads: Sequence[ContextType]) -> Batch:
        """Spawn a task of `agent` over each of `payloads`: a batch, whose progress is published.

        `batch_progress` is published with each whole percent, and `batch_completed` with the end of the last task. At
        most 10,000 tasks at once. Otherwise as `spawn_child_task`.
        """
        return await _scope("tasks can be spawned").spawn(agent, payloads, as_batch=True)

    @overload
    async def step(
        self, name: str, function: Callable[_P, Awaitable[_T]], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> _T: ...
    @overload
    async def step(self, name: str, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T: ...
    async def step(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `function(*args, **kwargs)` as a durable step, and return its result.

        The result is recorded when the function has returned. If the turn is taken again, after a crash, a retry or a
        release, the recorded result is returned and the function is not called. A call that was cut off before its
        result was recorded is made again; `ExecutionContext.current().idempotency_key` is then the same.

        May be called in async tools, callbacks and overridden agent methods. `function` is async, or a plain function,
        which is called in a thread. `name` is 1 to 100 letters, digits, '-', '_' or '.'; the n-th call of a name within
        its tool, callback or turn is a step of its own, so call the steps of one name in the same order each time. The
        result must be something that JSON can hold. If the function's return type is annotated, the result is given
        back as that type, else as plain JSON data. Changes that the function makes to the `AgentContext` are not part
        of the record: return what has to be kept.

        Raises what the function raises, and the step is not finished then. Raises `FactorialError` outside of a run,
        `ConfigError` for a name that cannot be one, and `ContextError` if the result cannot be stored.
        """
        return await _scope("a step can be taken").step(name, function, args, kwargs)

    def step_sync(self, name: str, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """`step` for plain `def` tools, which run in a thread: call `function` there as a durable step.

        `function` must be a plain function. Raises `FactorialError` if it is called in an event loop: use
        `await execution_ctx.step(...)` there. Otherwise as `step`.
        """
        result: _T = _scope("a step can be taken").step_sync(name, function, args, kwargs)
        return result


class _Done:
    """May be awaited, and is done."""

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()


def _scope(what: str) -> Scope:
    found = scope.get()
    if found is None:
        raise FactorialError(f"{what} only while an agent takes a turn")
    return found


@contextmanager
def entered(execution_ctx: ExecutionContext, within: Scope | None) -> Iterator[None]:
    """Within the block, `execution_ctx` is the current context, in the scope `within`: for Factorial's own use."""
    of_context, of_scope = execution_context.set(execution_ctx), scope.set(within)
    try:
        yield
    finally:
        scope.reset(of_scope)
        execution_context.reset(of_context)
