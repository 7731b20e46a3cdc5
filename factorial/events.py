"""The events, and the catalogue of all types that Factorial publishes itself. No input or output here.

The catalogue (checklist E03 to E08); every event carries the base fields of `BaseEvent`:

    event_type                            when                                              also carries
    run_enqueued                          the task is stored and queued
    run_started                           a worker takes the task up for the first time
    run_completed                         the run has ended with its output
    run_failed                            the run has ended without one                     error
    run_cancelled                         the run has ended because somebody asked
    run_steering_applied                  steering messages entered the conversation        data.messages
    run_steering_failed                   they did not: bad format, or the run had ended    error
    agent_output                          the final output                                  turn, data
    task_failed                           a turn failed; the task may be retried            error
    task_retried                          the task backs off and will be tried again        data.delay
    task_reclaimed                        its process died; any worker may take it up       data
    progress_update_run_turn_*            a turn           started · completed · failed     data, error
    progress_update_completion_*          a model call     started · completed · failed     data, error
    progress_update_tool_action_*         a tool call      started · completed · failed     data, error
    progress_update_completion_chunk      a piece of a streamed completion: live only       data
    subscription_gap                      (to one subscriber) events it missed are gone     data

Run events are stored in the same script as the change they tell of, and can be read again from any event
id; chunks are not stored. `data` is bounded (`MAX_EVENT_DATA`): an event never grows with a conversation.
"""

from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol

from factorial.utils import dump_anything, iso, shorten

__all__ = ["AgentEvent", "BaseEvent", "EventPublisher", "EventType", "QueueEvent", "bounded", "encode_event"]

MAX_EVENT_DATA = 16_384
"""No string within an event's `data` is longer than this many characters."""


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
    TASK_FAILED = "task_failed"
    TASK_RETRIED = "task_retried"
    TASK_RECLAIMED = "task_reclaimed"
    SUBSCRIPTION_GAP = "subscription_gap"


@dataclass(kw_only=True)
class BaseEvent:
    """What every event has (checklist E03). `timestamp` is the moment the event was made, in UTC."""

    event_type: str
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

    data: Any = None
    error: str | None = None


class EventPublisher(Protocol):
    """Where an agent's events go: the mailbox, or the handler of an inline run."""

    async def publish_event(self, event: BaseEvent) -> None:
        """Publish `event`, in order with the task's other events."""
        ...


def encode_event(event: BaseEvent) -> bytes:
    """`event` as JSON in UTF-8. A value that JSON cannot hold is shown as text: an event never fails a run."""
    return dump_anything(event.to_dict())


def bounded(value: Any, limit: int = MAX_EVENT_DATA, depth: int = 20) -> Any:
    """`value` as plain JSON data: each string shortened to `limit` characters, each list to 100 items, and no deeper
    than `depth`."""
    if isinstance(value, str):
        return shorten(value, limit)
    if value is None or isinstance(value, bool | int | float):
        return value
    if not depth:
        return f"<{type(value).__name__}>"
    if isinstance(value, dict):
        return {str(key): bounded(item, limit, depth - 1) for key, item in list(value.items())[:100]}
    if isinstance(value, list | tuple | set | frozenset):
        return [bounded(item, limit, depth - 1) for item in list(value)[:100]]
    return shorten(dump_anything(value).decode(), limit)
