"""How a context is taken apart, stored and put together again. Nothing is fake."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, computed_field

from factorial import AgentContext
from factorial.agent.lifecycle.codec import decode_context, encode_fields, encode_messages
from factorial.agent.lifecycle.snapshot import ContextSnapshot
from factorial.errors import ContextError


class Colour(Enum):
    RED = "red"


class Part(BaseModel):
    name: str
    made: datetime


class Rich(AgentContext):
    """Fields of many types."""

    colour: Colour = Colour.RED
    tags: set[str] = Field(default_factory=set)
    frozen: frozenset[int] = frozenset()
    parts: dict[str, Part] = Field(default_factory=dict)
    pair: tuple[int, str] = (1, "a")
    ratio: float = 0.0
    ratios: list[float] = Field(default_factory=list)
    price: Decimal = Decimal("0")
    raw: bytes = b""
    uid: UUID | None = None
    keyed: dict[int, str] = Field(default_factory=dict)
    other_name: int = Field(default=0, alias="otherName")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def size(self) -> int:
        """Computed."""
        return len(self.tags)


def through(context: AgentContext) -> Any:
    return decode_context(type(context), encode_fields(context), encode_messages(context.messages))


def test_a_context_comes_back_with_its_types() -> None:
    context = Rich(  # type: ignore[call-arg]
        query="q", messages=[{"role": "user", "content": "é\x00\u2028"}], tags={"a"}, frozen=frozenset({1}),
        parts={"p": Part(name="nut", made=datetime(2026, 1, 1, tzinfo=UTC))}, pair=(2, "b"), ratio=float("-inf"),
        ratios=[0.1, float("inf")], price=Decimal("1.10"), raw=b"\x00\x01", uid=UUID(int=7), keyed={1: "x"},
        otherName=5, extra={"a": [1, None, True]},
    )  # fmt: skip
    assert through(context) == context
    assert str(through(Rich(query="q", ratio=float("nan"))).ratio) == "nan"


def test_a_strict_class_with_computed_fields() -> None:
    class Strict(AgentContext, extra="forbid"):
        @computed_field  # type: ignore[prop-decorator]
        @property
        def double(self) -> int:
            return 2 * self.turn

    assert through(Strict(query="q", turn=2)).double == 4


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(value=json_values, message=st.dictionaries(st.text(), json_values, max_size=3))
def test_everything_that_json_can_hold_comes_back_equal(value: Any, message: dict[str, Any]) -> None:
    context = AgentContext(query="q", messages=[message], extra=value)  # type: ignore[call-arg]
    assert through(context) == context


@given(before=st.lists(st.integers(0, 3), max_size=5), after=st.lists(st.integers(0, 3), max_size=6))
def test_the_stored_messages_follow_every_change_of_the_context(before: list[int], after: list[int]) -> None:
    """Messages are appended, edited, dropped and replaced. The changes, applied to what is stored, give the context."""
    context = AgentContext(query="q", messages=[{"n": n} for n in before])
    stored = [json.dumps({"n": n}) for n in before]
    snapshot = ContextSnapshot(context)
    for messages in (after, before, []):
        context.messages = [{"n": n} for n in messages]
        changes = snapshot.changes(context)
        stored = [] if changes.rewritten else stored
        stored += [message.decode() for message in changes.messages]
        snapshot.stored(context, changes)
        assert [json.loads(message) for message in stored] == context.messages
        assert not snapshot.changes(context).messages


def test_only_changed_fields_and_new_messages_are_changes() -> None:
    context = Rich(query="q", messages=[{"role": "user", "content": "a"}])
    snapshot = ContextSnapshot(context)
    assert snapshot.changes(context).fields == {} and not snapshot.changes(context).messages
    context.turn = 1
    context.tags.add("t")
    context.messages.append({"role": "assistant", "content": "b"})
    changes = snapshot.changes(context)
    assert set(changes.fields) == {"turn", "tags", "size"}
    assert changes.messages == [b'{"role":"assistant","content":"b"}'] and not changes.rewritten
    snapshot.stored(context, changes)
    assert snapshot.changed_fields(context) == {}


def test_an_edit_within_a_stored_message_is_noticed() -> None:
    context = AgentContext(query="q", messages=[{"role": "user", "content": [{"type": "text", "text": "a"}]}])
    snapshot = ContextSnapshot(context)
    context.messages[0]["content"][0]["text"] = "b"
    changes = snapshot.changes(context)
    assert changes.rewritten and len(changes.messages) == 1


def test_restore_undoes_everything() -> None:
    context = Rich(query="q", messages=[{"role": "user", "content": ["a"]}], tags={"t"}, extra=[1])  # type: ignore[call-arg]
    before = context.model_copy(deep=True)
    snapshot = ContextSnapshot(context)
    context.messages[0]["content"].append("b")
    context.messages.append({})
    context.tags.add("u")
    context.extra.append(2)  # type: ignore[attr-defined]
    context.turn = 5
    snapshot.restore(context)
    assert context == before
    snapshot.restore_fields(context, {"turn": b"3"})
    assert context == before.model_copy(update={"turn": 3})


@pytest.mark.parametrize("value", [object(), "\ud800", {"x": object()}, lambda: None, b"\xff"])
def test_a_field_that_cannot_be_stored_is_named(value: Any) -> None:
    with pytest.raises(ContextError, match=r"AgentContext\.handle.* cannot be stored as JSON"):
        encode_fields(AgentContext(query="q", handle=value))  # type: ignore[call-arg]


@pytest.mark.parametrize("value", [object(), "\ud800", b"\xff"])
def test_a_message_that_cannot_be_stored_is_named_by_its_index(value: Any) -> None:
    with pytest.raises(ContextError, match=r"messages\[1\] cannot be stored as JSON"):
        encode_messages([{"role": "user"}, {"content": value}])


def test_circular_references_are_rejected() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ContextError, match="handle"):
        encode_fields(AgentContext(query="q", handle=circle))  # type: ignore[call-arg]
    with pytest.raises(ContextError, match=r"messages\[0\]"):
        encode_messages([{"content": circle}])


def test_the_error_about_stored_data_that_does_not_fit_names_the_field() -> None:
    with pytest.raises(ContextError, match="does not fit AgentContext: turn: Input should be a valid integer"):
        decode_context(AgentContext, {"query": b'"q"', "turn": b'"x"'}, [])
    with pytest.raises(ContextError, match="query: Field required"):
        decode_context(AgentContext, {}, [])
    with pytest.raises(ContextError, match="Invalid JSON"):
        decode_context(AgentContext, {"query": b"{"}, [])


def test_an_error_does_not_show_what_is_stored() -> None:
    with pytest.raises(ContextError) as raised:
        decode_context(AgentContext, {"query": b'"q"', "turn": b'"secret"'}, [])
    assert "secret" not in str(raised.value)
