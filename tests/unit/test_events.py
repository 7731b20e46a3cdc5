"""Events: their fields, their JSON, and the bounds of what they carry. Nothing is fake."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import BaseModel, field_serializer

from factorial import AgentEvent, BaseEvent, QueueEvent
from factorial.events import MAX_EVENT_DATA, EventType, bounded, encode_event

BASE = {"task_id": "t", "owner_id": "o", "agent_name": "a"}


def test_spec_E03_the_base_fields_are_always_there() -> None:
    event = BaseEvent(event_type="x").to_dict()
    assert list(event) == ["event_type", "task_id", "owner_id", "agent_name", "timestamp", "metadata"]
    assert event["task_id"] is None and event["metadata"] is None


def test_spec_E03_the_timestamp_is_iso_8601_in_utc() -> None:
    moment = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    assert BaseEvent(event_type="x", timestamp=moment).to_dict()["timestamp"] == "2026-11-21T10:00:00.123Z"
    made = BaseEvent(event_type="x").timestamp
    assert made.tzinfo is UTC and abs(made - datetime.now(UTC)) < timedelta(seconds=5)


def test_fields_that_are_not_set_are_left_out() -> None:
    event = AgentEvent(event_type="agent_output", turn=0, data=None, **BASE).to_dict()
    assert event["turn"] == 0
    assert "data" not in event and "error" not in event


@dataclass(kw_only=True)
class Custom(AgentEvent):
    """With a required field, and a default."""

    name: str
    percent: float = 0.5


@dataclass(kw_only=True)
class MoreCustom(Custom):
    """Derived once more."""

    level: int = 3


def test_spec_E10_custom_events_carry_their_own_fields() -> None:
    assert Custom(event_type="c", name="n", **BASE).to_dict().items() >= {"name": "n", "percent": 0.5}.items()
    assert MoreCustom(event_type="c", name="n", **BASE).to_dict()["level"] == 3
    assert "level" not in Custom(event_type="c", name="n").to_dict()
    with pytest.raises(TypeError, match="name"):
        Custom(event_type="c")  # type: ignore[call-arg]


def test_to_json_is_plain_json() -> None:
    event = QueueEvent(event_type="é", data={"when": datetime(2026, 1, 1, tzinfo=UTC), "set": {1}}, **BASE)
    assert json.loads(event.to_json())["data"] == {"when": "2026-01-01T00:00:00Z", "set": [1]}
    assert json.loads(encode_event(event))["event_type"] == "é"


class Hostile:
    """Nothing of it can be shown."""

    def __repr__(self) -> str:
        raise RuntimeError


class Unserialisable(BaseModel):
    """Its serialiser raises."""

    value: int = 1

    @field_serializer("value")
    def refuse(self, value: int) -> int:
        raise KeyError(value)


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    "data",
    [
        object(), {"x": object()}, float("nan"), {1: object}, [lambda: None], b"\xff", "\ud800", {"\ud800": [b"\xfe"]},
        CIRCLE, Hostile(), {"k": [Hostile()]}, Unserialisable(), {"a": Unserialisable()},
    ],
    ids=lambda data: type(data).__name__,
)  # fmt: skip
def test_an_event_never_fails_for_what_it_carries(data: Any) -> None:
    for carried in (data, bounded(data)):
        json.loads(encode_event(AgentEvent(event_type="x", data=carried)))


def test_bounded_cuts_strings_and_lists_and_keeps_the_shape() -> None:
    class Model(BaseModel):
        text: str

    long = "x" * (MAX_EVENT_DATA + 5)
    assert bounded(long).startswith("x" * MAX_EVENT_DATA) and "5 more characters" in bounded(long)
    assert bounded({"a": [long, 1, None, True, 2.5]})["a"][1:] == [1, None, True, 2.5]
    assert len(bounded(list(range(1000)))) == 100
    assert len(bounded({n: n for n in range(1000)})) == 100
    assert bounded((1, {2})) == [1, [2]]
    assert bounded({1: "x"}) == {"1": "x"}
    assert len(json.dumps(bounded(Model(text=long)))) < MAX_EVENT_DATA + 100


def test_event_types_are_plain_words() -> None:
    assert EventType.RUN_COMPLETED == "run_completed" and f"{EventType.RUN_FAILED}" == "run_failed"
