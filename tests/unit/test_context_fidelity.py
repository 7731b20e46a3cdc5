"""A context comes back as it was, or is refused when it is enqueued. What was accepted is read again, whatever a tool
or the world has done to it since. Pure: JSON, pydantic and Hypothesis, no server.
"""

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FilePath,
    Json,
    Secret,
    SecretBytes,
    SecretStr,
    Strict,
    computed_field,
    field_validator,
    model_validator,
)

from factorial import AgentContext
from factorial.agent.lifecycle.codec import decode_context, encode_fields, encode_messages, shown_fields
from factorial.agent.lifecycle.fidelity import check_comes_back
from factorial.agent.lifecycle.snapshot import ContextSnapshot
from factorial.errors import ContextError, UnreadableContextError


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid")
    price: float

    @computed_field
    def total(self) -> float:
        return self.price * 2


class Gift(Item):
    paper: str = "red"


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str = "rex"


class Corner(Enum):
    NORTH_EAST = (1, 1)
    SOUTH_WEST = (-1, -1)


class Colour(Enum):
    RED = "red"
    TWO = 2


class Rich(AgentContext):
    """A field of each kind that JSON alone does not bring back."""

    secret: SecretStr | None = None
    key: SecretBytes | None = None
    secrets: dict[str, SecretStr] = Field(default_factory=dict)
    pin: Secret[int] | None = None
    item: Item | None = None
    raw: Json[list[int]] | None = None
    corner: Corner | None = None
    colour: Colour | None = None
    grid: dict[tuple[int, int], str] = Field(default_factory=dict)
    limit: Annotated[float, Strict()] = 0.0
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    either: int | str | float = 0
    numbers: set[int] = Field(default_factory=set)
    pair: tuple[int, str] | None = None
    at: datetime | None = None
    day: date | None = None
    span: timedelta | None = None
    amount: Decimal | None = None
    uid: UUID | None = None
    blob: bytes = b""
    path: Path | None = None
    anything: Any = None
    handle: Any = Field(default=None, exclude=True)


texts = st.text(st.characters(exclude_categories=()), max_size=8)
numbers = st.integers(-(2**70), 2**70) | st.floats()
leaves = st.none() | st.booleans() | numbers | texts | st.datetimes() | st.just(Colour.RED)
plain: st.SearchStrategy[Any] = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.integers(), inner, max_size=3)
    | st.tuples(inner, inner),
    max_leaves=6,
)  # fmt: skip
values: Mapping[str, st.SearchStrategy[Any]] = {
    "secret": st.builds(SecretStr, texts),
    "key": st.builds(SecretBytes, st.binary(max_size=8)),
    "secrets": st.dictionaries(texts, st.builds(SecretStr, texts), max_size=2),
    "pin": st.builds(Secret, st.integers()),
    "item": st.builds(Item, price=st.floats()) | st.builds(Gift, price=st.floats()),
    "raw": st.lists(st.integers(), max_size=3).map(str),
    "corner": st.sampled_from(Corner),
    "colour": st.sampled_from(Colour),
    "grid": st.dictionaries(st.tuples(st.integers(), st.integers()), texts, max_size=2),
    "limit": st.floats(),
    "pet": st.builds(Cat) | st.builds(Dog, name=texts),
    "either": st.integers() | texts | st.floats(),
    "numbers": st.sets(st.integers(), max_size=4),
    "pair": st.tuples(st.integers(), texts),
    "at": st.datetimes(timezones=st.none() | st.just(UTC)),
    "day": st.dates(),
    "span": st.timedeltas(),
    "amount": st.decimals(allow_nan=False, allow_infinity=False),
    "uid": st.uuids(),
    "blob": st.binary(max_size=8),
    "path": texts.map(Path),
    "anything": plain,
    "extra": plain,
}


def same(was: Any, comes: Any) -> bool:
    if type(was) is not type(comes):
        return False
    if isinstance(was, float | Decimal) and math.isnan(was):
        return math.isnan(comes)
    if isinstance(was, dict):
        return was.keys() == comes.keys() and all(same(was[key], comes[key]) for key in was)
    if isinstance(was, list | tuple):
        return len(was) == len(comes) and all(map(same, was, comes))
    if isinstance(was, BaseModel):
        return same(dict(was), dict(comes))
    return bool(was == comes)


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(sorted(values)).flatmap(lambda name: st.tuples(st.just(name), values[name])))
def test_a_random_value_comes_back_as_it_was_or_is_refused(field: tuple[str, Any]) -> None:
    name, value = field
    context = Rich.model_validate({"query": "q", name: value})
    try:
        fields = encode_fields(context)
        check_comes_back(context, fields)
    except ContextError as refused:
        assert name in str(refused), "the message names the field"
        event(f"refused: {name}")
        return
    event(f"comes back: {name}")
    read = decode_context(Rich, fields, [])
    assert same(getattr(context, name), getattr(read, name))
    assert ContextSnapshot(read, fields).changed_fields(read) == {}, "reading it is no change"


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"corner": Corner.NORTH_EAST}, "corner"),
        ({"grid": {(1, 2): "x"}}, "grid"),
        ({"item": Gift(price=1.0)}, "item would not come back as it is: Gift would be an Item"),
        ({"anything": datetime(2026, 1, 1)}, "anything would not come back as it is: datetime would be a str"),
        ({"anything": {1: "x"}}, "anything would not come back as it is: its keys would differ"),
        ({"extra": (1, 2)}, "extra would not come back as it is: tuple would be a list"),
        ({"anything": "\ud800"}, "anything"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], refusal: str) -> None:
    context = Rich.model_validate({"query": "q", **fields})
    with pytest.raises(ContextError, match=refusal):
        check_comes_back(context, encode_fields(context))


def test_secrets_are_stored_with_their_values_and_masked_where_they_are_shown() -> None:
    context = Rich(query="q", secret=SecretStr("hunter2"), secrets={"a": SecretStr("tiger")}, either="hunter2")
    fields = encode_fields(context)
    assert decode_context(Rich, fields, []).secret == SecretStr("hunter2")
    shown = shown_fields(fields)
    assert (shown["secret"], shown["secrets"]) == ("**********", {"a": "**********"})
    assert shown["either"] == "hunter2" and "" not in shown


def test_an_object_that_looks_like_a_stored_secret_is_none() -> None:
    context = Rich(query="q", anything={"$secret": "x"})
    fields = encode_fields(context)
    check_comes_back(context, fields)
    assert shown_fields(fields)["anything"] == {"$secret": "x"}


def test_equal_numbers_and_texts_of_two_types_are_the_same() -> None:
    class Trip(AgentContext):
        budget: float = 500  # pydantic does not validate defaults
        kind: str = "plane"

    class Kind(StrEnum):
        TRAIN = "train"

    trip = Trip(query="q")
    trip.kind = Kind.TRAIN
    check_comes_back(trip, encode_fields(trip))


# -- what was accepted once


class Checked(AgentContext):
    """Checks the world, and itself."""

    path: FilePath | None = None
    paths: list[FilePath] = Field(default_factory=list)
    count: int = 0
    log: list[str] = Field(default_factory=list)
    total: int = 0

    @field_validator("log")
    @classmethod
    def note(cls, log: list[str]) -> list[str]:
        return [*log, "checked"]

    @model_validator(mode="after")
    def adds_up(self) -> "Checked":
        if self.total != self.count:
            raise ValueError("total must be the count")
        return self


def stored_with(change: Any) -> dict[str, bytes]:
    """What is stored of a context that a tool has changed."""
    context = Checked(query="q")
    fields = encode_fields(context)
    snapshot = ContextSnapshot(context, fields)
    change(context)
    return fields | snapshot.changed_fields(context)


def test_a_check_of_the_world_is_made_of_the_input_alone(tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.touch()
    fields = encode_fields(Checked(query="q", path=file, paths=[file]))
    file.unlink()
    read = decode_context(Checked, fields, [])
    assert (read.path, read.paths) == (file, [file])


def test_a_value_that_a_tool_has_set_against_its_type_comes_back() -> None:
    def spoil(context: Checked) -> None:
        context.count = None  # type: ignore[assignment]

    read = decode_context(Checked, stored_with(spoil), encode_messages([{"role": "user", "content": "q"}]))
    assert read.count is None and read.query == "q" and read.messages == [{"role": "user", "content": "q"}]


def test_a_rule_of_the_class_that_a_tool_has_broken_is_no_obstacle() -> None:
    def spoil(context: Checked) -> None:
        context.total = 7

    assert decode_context(Checked, stored_with(spoil), []).total == 7


def test_a_validator_that_changes_what_it_has_changed_before_changes_it_once() -> None:
    context = Checked(query="q", log=["made"])
    assert context.log == ["made", "checked"]
    fields = encode_fields(context)
    for _ in range(3):
        read = decode_context(Checked, fields, [])
        fields = encode_fields(read)
    assert read.log == ["made", "checked"]


def test_a_spoilt_field_that_is_mended_is_no_longer_marked() -> None:
    context = Checked(query="q")
    fields = encode_fields(context)
    snapshot = ContextSnapshot(context, fields)
    context.count = None  # type: ignore[assignment]
    fields |= snapshot.changed_fields(context)
    snapshot.stored(context, snapshot.changes(context))
    context.count = 3
    fields |= snapshot.changed_fields(context)

    class Renewed(Checked):
        count: list[int] = Field(default_factory=list)  # type: ignore[assignment]

    with pytest.raises(UnreadableContextError, match="count"):
        decode_context(Renewed, fields, [])


# -- code that cannot read it


class Renewed(AgentContext):
    """Another version of a class: one field more, and one of another type."""

    tenant: str
    count: list[int] = Field(default_factory=list)


def test_code_that_cannot_read_it_is_told_from_damage() -> None:
    fields = encode_fields(Checked(query="q", log=[]))
    with pytest.raises(UnreadableContextError, match=r"does not fit Renewed: count: .*; tenant: Field required"):
        decode_context(Renewed, fields, [])
    with pytest.raises(ContextError, match="Invalid JSON") as damaged:
        decode_context(Checked, fields | {"count": b"{"}, [])
    assert not isinstance(damaged.value, UnreadableContextError)
