"""The events, and the catalogue of all types that Factorial publishes.

`CATALOGUE` says when each type is published, and which fields it has in addition to those of `BaseEvent`. The script
that makes a change writes the event about it, so neither exists without the other. Stored events can be read again from
any event id. Chunks of a streamed answer are published, but not stored. The size of an event is bounded, and does not
grow with the conversation; only a final output is published whole.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from types import MappingProxyType
from typing import Any, Protocol

from factorial._core.json import dump_anything, load_json
from factorial._core.text import iso, shorten

__all__ = [
    "CATALOGUE",
    "AgentEvent",
    "BaseEvent",
    "BatchEvent",
    "CatalogueEntry",
    "EventPublisher",
    "EventType",
    "QueueEvent",
    "attributed",
    "bounded",
    "encode_event",
    "whole_or_size",
]

MAX_EVENT_DATA = 16_384
"""The most characters of a string within a progress event's `data`."""

MAX_EVENT_TOTAL = 65_536
"""The most characters that the arguments of a step, or its result, add to an event."""

MAX_EVENT_ERROR = 4_000
"""The most characters of an event's `error`."""

_MOST_ITEMS = 100
_LONGEST_KEY = 200


class EventType(StrEnum):
    """The types of events about runs, tasks, batches and subscriptions. Types of progress events are made from names:
    `progress_update_<name>_started`, `..._completed` and `..._failed`."""

    RUN_ENQUEUED = "run_enqueued"
    RUN_STARTED = "run_started"
    RUN_COMPLETED = "run_completed"
    RUN_FAILED = "run_failed"
    RUN_CANCELLED = "run_cancelled"
    RUN_STEERING_APPLIED = "run_steering_applied"
    RUN_STEERING_FAILED = "run_steering_failed"
    AGENT_OUTPUT = "agent_output"
    CONTEXT_WINDOW_TRIMMED = "context_window_trimmed"
    TASK_FAILED = "task_failed"
    TASK_RETRIED = "task_retried"
    TASK_DEFERRED = "task_deferred"
    TASK_RECLAIMED = "task_reclaimed"
    TASK_PENDING_TOOL_CALL_RESULTS = "task_pending_tool_call_results"
    TASK_PENDING_CHILD_TASK_RESULTS = "task_pending_child_task_results"
    BATCH_PROGRESS = "batch_progress"
    BATCH_COMPLETED = "batch_completed"
    BATCH_CANCELLED = "batch_cancelled"
    COMPLETION_RETRACTED = "completion_retracted"
    TOOL_PROGRESS = "tool_progress"
    SUBSCRIPTION_GAP = "subscription_gap"


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One type of event."""

    when: str
    """When it is published: a sentence that stands alone."""
    carries: tuple[str, ...] = ()
    """Its fields in addition to those of `BaseEvent`. `data.delay` is the key `delay` of its `data`."""


def _progress(
    name: str, what: str, result: tuple[str, ...] = (), more: tuple[str, ...] = ()
) -> dict[str, CatalogueEntry]:
    about = ("turn", "data.args", "data.kwargs", "data.context", *more)
    return {
        f"progress_update_{name}_started": CatalogueEntry(f"{what} begins", about),
        f"progress_update_{name}_completed": CatalogueEntry(f"{what} was completed", about + result),
        f"progress_update_{name}_failed": CatalogueEntry(f"{what} failed", (*about, "error")),
    }


_BATCH = ("batch_id", "progress", "completed_tasks", "total_tasks", "status")

CATALOGUE: Mapping[str, CatalogueEntry] = MappingProxyType({
    EventType.RUN_ENQUEUED: CatalogueEntry("a task was stored and queued"),
    EventType.RUN_STARTED: CatalogueEntry("a worker claimed the task for the first time"),
    EventType.RUN_COMPLETED: CatalogueEntry("the run ended with its output", ("metadata.finish_reason",)),
    EventType.RUN_FAILED: CatalogueEntry("the run ended with an error, and is not retried", ("error",)),
    EventType.RUN_CANCELLED: CatalogueEntry("the run ended as cancelled"),
    EventType.AGENT_OUTPUT: CatalogueEntry(
        "the run has its final output; `run_completed` follows", ("turn", "data", "metadata.finish_reason")
    ),
    EventType.RUN_STEERING_APPLIED: CatalogueEntry(
        "steering messages were added to the conversation", ("data.messages",)
    ),
    EventType.RUN_STEERING_FAILED: CatalogueEntry(
        "steering messages were rejected: invalid format, or the task ended first", ("error",)
    ),
    EventType.TASK_FAILED: CatalogueEntry("a turn failed; `task_retried` or `run_failed` follows", ("error",)),
    EventType.TASK_RETRIED: CatalogueEntry(
        "a failed turn will be tried again after `data.delay` seconds", ("data.delay",)
    ),
    EventType.TASK_DEFERRED: CatalogueEntry(
        "a task is deferred for at most `data.patience` seconds, and spends no retry: the provider is away, or the "
        "deployed code cannot read the task",
        ("error", "data.delay", "data.patience"),
    ),
    EventType.TASK_RECLAIMED: CatalogueEntry(
        "the task was reclaimed from a dead process, and is queued again",
        ("data.process", "data.cause", "data.recoveries"),
    ),
    EventType.TASK_PENDING_TOOL_CALL_RESULTS: CatalogueEntry(
        "the task is parked until results of deferred tools are delivered", ("data.tool_call_ids",)
    ),
    EventType.TASK_PENDING_CHILD_TASK_RESULTS: CatalogueEntry(
        "the task is parked until its child tasks have ended", ("data.child_task_ids", "data.children")
    ),
    EventType.BATCH_PROGRESS: CatalogueEntry("a batch has got another whole percent further", _BATCH),
    EventType.BATCH_COMPLETED: CatalogueEntry("all tasks of a batch have ended", _BATCH),
    EventType.BATCH_CANCELLED: CatalogueEntry(
        "all tasks of a batch have ended, because the batch or its parent was cancelled", _BATCH
    ),
    **_progress("run_turn", "a turn"),
    **_progress("completion", "a model call", ("data.result", "data.text")),
    **_progress(
        "tool_action",
        "a tool call",
        ("data.result.tool_call", "data.result.output_data", "data.result.output_str"),
        ("data.tool_name", "data.tool_call_id", "data.arguments"),
    ),
    **_progress("step", "a call that the agent's code made by `execution_ctx.step`", ("data.result",)),
    EventType.TOOL_PROGRESS: CatalogueEntry(
        "a tool reports its progress by `execution_ctx.progress`",
        ("turn", "data.fraction", "data.text", "data.tool_call_id"),
    ),
    EventType.CONTEXT_WINDOW_TRIMMED: CatalogueEntry(
        "a model call leaves out the conversation's oldest messages, to stay within `context_window_limit`",
        ("turn", "data.limit", "data.tokens", "data.messages_left_out", "data.messages_sent"),
    ),
    "progress_update_completion_chunk": CatalogueEntry(
        "a piece of a streamed answer has arrived; this event is not stored",
        ("turn", "metadata.attempt", "metadata.pickups", "data"),
    ),
    EventType.COMPLETION_RETRACTED: CatalogueEntry(
        "the pieces of this turn that were published before are void: their model call has failed, or was cut off with "
        "its process",
        ("turn", "data.attempt", "data.pickups"),
    ),
    EventType.SUBSCRIPTION_GAP: CatalogueEntry(
        "this subscriber missed events that are no longer stored", ("data.after", "data.lost_up_to")
    ),
})  # fmt: skip
"""Every type of event that Factorial publishes."""


@dataclass(kw_only=True)
class BaseEvent:
    """What every event has. `timestamp` is the moment at which the event was made, in UTC."""

    event_type: str = field(kw_only=False)
    task_id: str | None = None
    owner_id: str | None = None
    agent_name: str | None = None
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))
    metadata: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The event as plain data: the base fields, and those of the others that are not None."""
        event = {
            "event_type": self.event_type,
            "task_id": self.task_id,
            "owner_id": self.owner_id,
            "agent_name": self.agent_name,
            "timestamp": iso(self.timestamp),
            "metadata": self.metadata,
        }
        for name in _further_fields(self):
            value = getattr(self, name)
            if value is not None:
                event[name] = value
        if self.event_type == EventType.AGENT_OUTPUT:
            event.setdefault("data", None)  # the output of a run may be None
        if isinstance(error := event.get("error"), str):
            event["error"] = shorten(error, MAX_EVENT_ERROR)
        return event

    def to_json(self) -> str:
        """The event as JSON text."""
        return encode_event(self).decode()


_further_fields_of: dict[type[BaseEvent], tuple[str, ...]] = {}


def _further_fields(event: BaseEvent) -> tuple[str, ...]:
    """The fields of the event's class that `BaseEvent` does not have. Cached, because every step makes events."""
    known = _further_fields_of.get(type(event))
    if known is None:
        base = {field.name for field in fields(BaseEvent)}
        known = tuple(field.name for field in fields(event) if field.name not in base)
        _further_fields_of[type(event)] = known
    return known


@dataclass(kw_only=True)
class AgentEvent(BaseEvent):
    """Something that an agent did. Extend it to add fields."""

    turn: int | None = None
    data: Any = None
    error: str | None = None


@dataclass(kw_only=True)
class QueueEvent(BaseEvent):
    """Something that happened to a task in the queue."""

    turn: int | None = None
    worker_id: str | None = None
    batch_id: str | None = None
    data: Any = None
    error: str | None = None


@dataclass(kw_only=True)
class BatchEvent(BaseEvent):
    """How many tasks of a batch have ended. Kept for programs of 0.1.x that name it: the server's scripts write the
    events of batches, with these fields."""

    batch_id: str | None = None
    progress: float | None = None
    """Percent of the tasks that have ended."""
    completed_tasks: int | None = None
    total_tasks: int | None = None
    status: str | None = None


class EventPublisher(Protocol):
    """Publishes the events of a task: through the server, or to the event handler of an inline run."""

    async def publish_event(self, event: BaseEvent) -> None:
        """Publish `event`, in order with the task's other events. If its `task_id`, `owner_id` or `agent_name` is None,
        those of the task are filled in."""


def attributed(event: BaseEvent, task_id: str | None, owner_id: str, agent_name: str | None) -> BaseEvent:
    """`event` with these ids in the place of those that are None. The given object is not changed."""
    if event.task_id is not None and event.owner_id is not None and event.agent_name is not None:
        return event
    filled = copy(event)  # it may be published for other tasks, too
    filled.task_id = task_id if event.task_id is None else event.task_id
    filled.owner_id = owner_id if event.owner_id is None else event.owner_id
    filled.agent_name = agent_name if event.agent_name is None else event.agent_name
    return filled


def encode_event(event: BaseEvent) -> bytes:
    """`event` as JSON in UTF-8. A value that JSON cannot hold becomes text, so an event never fails a run."""
    return dump_anything(event.to_dict())


def bounded(value: Any, limit: int = MAX_EVENT_DATA, depth: int = 20, total: int = MAX_EVENT_TOTAL) -> Any:
    """`value` as plain JSON data of a bounded size.

    Each string is shortened to `limit` characters, each list and dict to 100 items. Nothing is nested deeper than
    `depth`. What exceeds about `total` characters in all is left out.
    """
    return _Measure(limit, total).take(value, depth)


def whole_or_size(value: Any, limit: int = MAX_EVENT_TOTAL) -> Any:
    """`value` as plain JSON data; or, if that takes more than `limit` bytes, `{"truncated": True, "size": bytes}`."""
    if value is None or isinstance(value, bool | int | float):
        return value
    encoded = dump_anything(value)
    return load_json(encoded) if len(encoded) <= limit else {"truncated": True, "size": len(encoded)}


class _Measure:
    """The characters that are left."""

    def __init__(self, limit: int, total: int) -> None:
        self._limit = limit
        self._left = total

    def take(self, value: Any, depth: int) -> Any:
        """As much of `value` as fits."""
        if isinstance(value, str):
            return self._text(value, self._limit)
        self._left -= 8  # roughly the size of a number, or of the brackets and commas around something else
        if value is None or isinstance(value, bool | int | float):
            return value
        if not depth:
            return f"<{type(value).__name__}>"
        if isinstance(value, dict):
            taken = {}
            for key, item in islice(value.items(), _MOST_ITEMS):
                if self._left <= 0:
                    break
                taken[self._text(str(key), _LONGEST_KEY)] = self.take(item, depth - 1)
            return taken
        if isinstance(value, list | tuple | set | frozenset):
            items = []
            for item in islice(value, _MOST_ITEMS):
                if self._left <= 0:
                    break
                items.append(self.take(item, depth - 1))
            return items
        return self.take(load_json(dump_anything(value)), depth - 1)

    def _text(self, text: str, limit: int) -> str:
        text = shorten(text, min(limit, max(self._left, 0)))
        self._left -= len(text)
        return text
