"""Events: their fields, their JSON, and the limits of their data. Nothing is fake."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, field_serializer

from factorial import AgentEvent, BaseEvent, QueueEvent
from factorial._core.json import dump_anything
from factorial.events import (
    CATALOGUE,
    MAX_EVENT_DATA,
    MAX_EVENT_ERROR,
    MAX_EVENT_TOTAL,
    EventType,
    bounded,
    encode_event,
)

BASE: Any = {"task_id": "t", "owner_id": "o", "agent_name": "a"}


def test_the_base_fields_are_always_there() -> None:
    event = BaseEvent(event_type="x").to_dict()
    assert list(event) == ["event_type", "task_id", "owner_id", "agent_name", "timestamp", "metadata"]
    assert event["task_id"] is None and event["metadata"] is None


def test_the_timestamp_is_iso_8601_in_utc() -> None:
    moment = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    assert BaseEvent(event_type="x", timestamp=moment).to_dict()["timestamp"] == "2026-11-21T10:00:00.123Z"
    made = BaseEvent(event_type="x").timestamp
    assert made.tzinfo is UTC and abs(made - datetime.now(UTC)) < timedelta(seconds=5)


def test_fields_that_are_not_set_are_left_out() -> None:
    event = AgentEvent(event_type="task_failed", turn=0, data=None, **BASE).to_dict()
    assert event["turn"] == 0
    assert "data" not in event and "error" not in event


def test_an_output_is_always_there_even_if_it_is_none() -> None:
    assert AgentEvent(event_type="agent_output", turn=0, **BASE).to_dict()["data"] is None


def test_an_error_is_bounded() -> None:
    event = AgentEvent(event_type="run_failed", error="x" * 100_000, **BASE).to_dict()
    assert len(event["error"]) < MAX_EVENT_ERROR + 50 and event["error"].endswith("96000 more characters)")


@dataclass(kw_only=True)
class Custom(AgentEvent):
    """With a required field, and a default."""

    name: str
    percent: float = 0.5


@dataclass
class PlainCustom(AgentEvent):
    """As in the documentation: required fields, without `kw_only`."""

    analysis_type: str
    score: float


@dataclass(kw_only=True)
class MoreCustom(Custom):
    """Derived once more."""

    level: int = 3


def test_custom_events_carry_their_own_fields() -> None:
    assert Custom(event_type="c", name="n", **BASE).to_dict().items() >= {"name": "n", "percent": 0.5}.items()
    assert MoreCustom(event_type="c", name="n", **BASE).to_dict()["level"] == 3
    assert "level" not in Custom(event_type="c", name="n").to_dict()
    with pytest.raises(TypeError, match="name"):
        Custom(event_type="c")  # type: ignore[call-arg]
    plain = PlainCustom(event_type="c", analysis_type="sentiment", score=0.5, **BASE)
    assert plain.to_dict().items() >= {"event_type": "c", "analysis_type": "sentiment", "score": 0.5}.items()


def test_to_json_is_plain_json() -> None:
    event = QueueEvent(event_type="é", data={"when": datetime(2026, 1, 1, tzinfo=UTC), "set": {1}}, **BASE)
    assert json.loads(event.to_json())["data"] == {"when": "2026-01-01T00:00:00Z", "set": [1]}
    assert json.loads(encode_event(event))["event_type"] == "é"


class Hostile:
    """Cannot be shown: its `repr` raises."""

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
def test_an_event_never_fails_because_of_its_data(data: Any) -> None:
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


def test_bounded_shows_the_structure_of_what_json_can_hold() -> None:
    class Model(BaseModel):
        when: datetime
        parts: set[int]

    moment = datetime(2026, 1, 1, tzinfo=UTC)
    assert bounded([moment, Model(when=moment, parts={1})]) == [
        "2026-01-01T00:00:00Z", {"when": "2026-01-01T00:00:00Z", "parts": [1]},
    ]  # fmt: skip


class Long(str):
    """A long text that is shown in few words when a test fails."""

    def __new__(cls, text: str) -> "Long":
        return super().__new__(cls, text * 9_999)

    def __repr__(self) -> str:
        return f"Long({self[:9]!r}...)"


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=50) | st.builds(Long, st.text(max_size=9)),
        lambda inner: st.lists(inner, max_size=150) | st.dictionaries(st.text(max_size=400), inner, max_size=150),
        max_leaves=60,
    )
)
@settings(deadline=None, max_examples=40)
def test_bounded_leaves_small_things_as_they_are_and_large_ones_fit(value: Any) -> None:
    shown = bounded(value)
    if len(dump_anything(value)) < 2_000 and not _has_long_keys(value):
        assert shown == value
    assert len(json.dumps(shown, ensure_ascii=False)) < 7 * MAX_EVENT_TOTAL  # a control character takes six in JSON


def _has_long_keys(value: Any) -> bool:
    if isinstance(value, dict):
        return any(len(key) > 200 or _has_long_keys(item) for key, item in value.items())
    return isinstance(value, list) and (len(value) > 100 or any(map(_has_long_keys, value)))


def test_bounded_bounds_the_whole() -> None:
    text = "x" * 16_000
    wide = {f"key{n}": [[text] * 100] * 100 for n in range(100)}
    assert len(json.dumps(bounded(wide))) < MAX_EVENT_TOTAL + 2_000
    assert len(json.dumps(bounded({text: 1}))) < 300
    twice: list[Any] = []
    twice += [twice, twice]  # a circle with two ways round
    assert len(json.dumps(bounded(twice))) < 3 * MAX_EVENT_TOTAL
    assert bounded([text] * 10)[:4] == [text] * 4


def test_event_types_are_plain_words() -> None:
    assert str(EventType.RUN_COMPLETED) == "run_completed" and f"{EventType.RUN_FAILED}" == "run_failed"


def test_every_event_type_is_in_the_catalogue() -> None:
    assert {str(name) for name in EventType} <= CATALOGUE.keys()


def test_what_the_catalogue_says_of_an_event_stands_alone() -> None:
    """A dashboard shows one line of it: no pronoun may refer to another line, and fields have their full names."""
    for event_type, entry in CATALOGUE.items():
        first, *_ = entry.when.split()
        assert first in ("a", "all", "another", "steering", "the", "this"), event_type
        assert not re.search(r"\b(it|they|them|so)\b", entry.when), event_type
        for name in re.findall(r"`(data\.\w+)`", entry.when):
            assert name in entry.carries, event_type
