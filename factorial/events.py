"""The events, and the catalogue of all types that Factorial publishes itself. No input or output here.

`CATALOGUE` is the table: when each type is published, and which fields it has beside those of `BaseEvent` (checklist
E03 to E08, T03, T05). Events are written by the script that makes the change they tell of, and can be read again from
any event id; chunks of a streamed answer are not stored. What an event carries is bounded: it never grows with a
conversation. Only a final output is published whole.
"""

from collections.abc import Mapping
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
    "bounded",
    "encode_event",
]

MAX_EVENT_DATA = 16_384
"""No string within a progress event's `data` is longer than this many characters."""

MAX_EVENT_TOTAL = 65_536
"""What a step's arguments, or its result, may add to an event, in characters."""

MAX_EVENT_ERROR = 4_000
"""No event's `error` is longer than this many characters."""

_MOST_ITEMS = 100
_LONGEST_KEY = 200


class EventType(StrEnum):
    """The types of the run's and the queue's own events; progress events are named by `progress`."""

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
    TASK_RECLAIMED = "task_reclaimed"
    TASK_PENDING_TOOL_CALL_RESULTS = "task_pending_tool_call_results"
    TASK_PENDING_CHILD_TASK_RESULTS = "task_pending_child_task_results"
    BATCH_PROGRESS = "batch_progress"
    BATCH_COMPLETED = "batch_completed"
    BATCH_CANCELLED = "batch_cancelled"
    SUBSCRIPTION_GAP = "subscription_gap"


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One type of event: when it is published, and what it carries beside the base fields.

    `data.delay` is the key `delay` of the event's `data`.
    """

    when: str
    carries: tuple[str, ...] = ()


def _operation(name: str, what: str, result: str) -> dict[str, CatalogueEntry]:
    about = ("turn", "data.args", "data.kwargs", "data.context")
    return {
        f"progress_update_{name}_started": CatalogueEntry(f"{what} begins", about),
        f"progress_update_{name}_completed": CatalogueEntry(f"{what} is done", (*about, *([result] if result else []))),
        f"progress_update_{name}_failed": CatalogueEntry(f"{what} has failed", (*about, "error")),
    }


_BATCH = ("batch_id", "progress", "completed_tasks", "total_tasks", "status")

CATALOGUE: Mapping[str, CatalogueEntry] = MappingProxyType({
    "run_enqueued": CatalogueEntry("the task is stored and queued"),
    "run_started": CatalogueEntry("a worker takes the task up for the first time"),
    "run_completed": CatalogueEntry("the run has ended with its output"),
    "run_failed": CatalogueEntry("the run has ended without one", ("error",)),
    "run_cancelled": CatalogueEntry("the run has ended because somebody asked"),
    "agent_output": CatalogueEntry("the final output, just before `run_completed`", ("turn", "data")),
    "run_steering_applied": CatalogueEntry("steering messages have entered the conversation", ("data.messages",)),
    "run_steering_failed": CatalogueEntry("they will not: bad format, or the run has ended", ("error",)),
    "task_failed": CatalogueEntry("a turn has failed; the task may be tried again", ("error",)),
    "task_retried": CatalogueEntry("it will be, after `delay` seconds", ("data.delay",)),
    "task_reclaimed": CatalogueEntry(
        "its process has died; any worker may take it up", ("data.process", "data.cause", "data.recoveries")
    ),
    "task_pending_tool_call_results": CatalogueEntry(
        "the task is parked until results come from outside", ("data.tool_call_ids",)
    ),
    "task_pending_child_task_results": CatalogueEntry(
        "the task is parked until the tasks that it has spawned have ended", ("data.child_task_ids", "data.children")
    ),
    "batch_progress": CatalogueEntry("of a batch's tasks, one more whole percent has ended", _BATCH),
    "batch_completed": CatalogueEntry("all of a batch's tasks have ended", _BATCH),
    "batch_cancelled": CatalogueEntry("so they have, because their parent was cancelled", _BATCH),
    **_operation("run_turn", "a turn", ""),
    **_operation("completion", "a model call", "data.result"),
    **_operation("tool_action", "a tool call", "data.result"),
    "context_window_trimmed": CatalogueEntry(
        "a model call goes without the conversation's oldest messages, to stay within `context_window_limit`",
        ("turn", "data.limit", "data.tokens", "data.messages_left_out", "data.messages_sent"),
    ),
    "progress_update_completion_chunk": CatalogueEntry("a piece of a streamed answer; not stored", ("turn", "data")),
    "subscription_gap": CatalogueEntry(
        "to one subscriber: events that it has missed are gone", ("data.after", "data.lost_up_to")
    ),
})  # fmt: skip
"""Every type of event that Factorial publishes itself."""


@dataclass(kw_only=True)
class BaseEvent:
    """What every event has (checklist E03). `timestamp` is the moment the event was made, in UTC."""

    event_type: str = field(kw_only=False)
    task_id: str | None = None
    owner_id: str | None = None
    agent_name: str | None = None
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))
    metadata: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The event as plain data: the base fields, and whatever else is set."""
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
    """What events of this class have beside the base fields. Asked once per class: an event is made in each step."""
    known = _further_fields_of.get(type(event))
    if known is None:
        base = {field.name for field in fields(BaseEvent)}
        known = tuple(field.name for field in fields(event) if field.name not in base)
        _further_fields_of[type(event)] = known
    return known


@dataclass(kw_only=True)
class AgentEvent(BaseEvent):
    """Something an agent did. Extend it with fields of your own (checklist E10)."""

    turn: int | None = None
    data: Any = None
    error: str | None = None


@dataclass(kw_only=True)
class QueueEvent(BaseEvent):
    """Something that happened to a task on its way through the queue."""

    worker_id: str | None = None
    batch_id: str | None = None
    data: Any = None
    error: str | None = None


@dataclass(kw_only=True)
class BatchEvent(BaseEvent):
    """How far the tasks of a batch are."""

    batch_id: str | None = None
    progress: float | None = None
    """Percent that have ended."""
    completed_tasks: int | None = None
    total_tasks: int | None = None
    status: str | None = None


class EventPublisher(Protocol):
    """Where an agent's events go: the mailbox, or the handler of an inline run."""

    async def publish_event(self, event: BaseEvent) -> None:
        """Publish `event`, in order with the task's other events."""
        ...


def encode_event(event: BaseEvent) -> bytes:
    """`event` as JSON in UTF-8. A value that JSON cannot hold is shown as text: an event never fails a run."""
    return dump_anything(event.to_dict())


def bounded(value: Any, limit: int = MAX_EVENT_DATA, depth: int = 20, total: int = MAX_EVENT_TOTAL) -> Any:
    """`value` as plain JSON data of a bounded size: each string shortened to `limit` characters, each list and dict to
    100 items, no deeper than `depth`, and about `total` characters in all; what comes after these is left out."""
    return _Measure(limit, total).take(value, depth)


class _Measure:
    """How much still fits."""

    def __init__(self, limit: int, total: int) -> None:
        self._limit = limit
        self._left = total

    def take(self, value: Any, depth: int) -> Any:
        """As much of `value` as fits."""
        if isinstance(value, str):
            return self._text(value, self._limit)
        self._left -= 8  # about what a number takes, or the brackets and commas around something else
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
