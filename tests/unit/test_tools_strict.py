"""`strict_json_schema=True`: a schema that OpenAI takes with `"strict": true`, or no `strict`. Pure."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple, Optional
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from factorial import function_tool
from factorial.tools.function_tool import FunctionTool


class Colour(Enum):
    """An enum."""

    RED = "red"
    BLUE = "blue"


class Person(BaseModel):
    """A model whose fields are all required."""

    name: str
    age: int


class Optionally(BaseModel):
    """A field may be left out."""

    name: str
    age: int = 0


class Open(BaseModel):
    """It takes any other field."""

    model_config = ConfigDict(extra="allow")
    name: str


class Team(BaseModel):
    """Models within a model."""

    lead: Annotated[Person, Field(description="Who leads")]
    members: list[Person]


class Tree(BaseModel):
    """A recursive model."""

    label: str
    children: list["Tree"]


class Chain(BaseModel):
    """A recursive model whose reference has a description of its own."""

    following: Optional["Chain"] = Field(description="the next")


class Pair(NamedTuple):
    """A tuple."""

    left: int
    right: int


@dataclass
class Point:
    """A dataclass."""

    x: float
    y: float


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


FITTING: list[Any] = [
    str, int, bool, float, list[str], Colour, Literal["a", "b"], str | None, datetime, UUID, Person, list[Person],
    Person | None, Team, Tree, Point, list[list[Point]], Annotated[int, Field(ge=1, le=9)],
    Annotated[Person, Field(description="who")], Cat | Dog, Annotated[str, Field(pattern="^a")], Decimal,
]  # fmt: skip
UNFIT: list[Any] = [
    dict[str, str], dict[str, Person], Any, Optionally, list[Optionally], Open, set[str], tuple[int, str], Pair, object,
    Annotated[str, Field(min_length=1)], Annotated[Cat | Dog, Field(discriminator="kind")], list[Any], bytes,
]  # fmt: skip


def tool_of(kind: Any) -> FunctionTool:
    def take(value: Any) -> str:
        """Take."""
        return str(value)

    take.__annotations__["value"] = kind
    return function_tool(strict_json_schema=True)(take)


def faults(schema: Any, place: str = "$") -> list[str]:
    """What OpenAI's strict mode does not take in `schema`."""
    if isinstance(schema, list):
        return [fault for number, part in enumerate(schema) for fault in faults(part, f"{place}[{number}]")]
    if not isinstance(schema, dict):
        return []
    found = []
    if schema.get("type") == "object":
        if schema.get("additionalProperties") is not False:
            found.append(f"{place}: additionalProperties is not false")
        if set(schema.get("properties", ())) != set(schema.get("required", ())):
            found.append(f"{place}: not every property is required")
    if "$ref" in schema and len(schema) > 1:
        found.append(f"{place}: a reference with more beside it")
    found += [f"{place}: {key}" for key in ("oneOf", "allOf", "prefixItems", "uniqueItems", "default") if key in schema]
    return found + [fault for key, part in schema.items() for fault in faults(part, f"{place}.{key}")]


def sent(kind: Any) -> dict[str, Any]:
    function: dict[str, Any] = tool_of(kind).param["function"]
    return function


@pytest.mark.parametrize("kind", FITTING, ids=str)
def test_what_fits_is_closed(kind: Any) -> None:
    function = sent(kind)
    assert function["strict"] is True
    assert faults(function["parameters"]) == []


@pytest.mark.parametrize("kind", UNFIT, ids=str)
def test_what_does_not_fit_is_not_strict(kind: Any) -> None:
    assert "strict" not in sent(kind)


def test_a_recursive_reference_with_a_description() -> None:
    function = sent(Chain)
    assert not function.get("strict") or faults(function["parameters"]) == []


@given(
    kind=st.recursive(
        st.sampled_from(FITTING + UNFIT),
        lambda inner: inner.map(lambda one: list[one]) | inner.map(lambda one: one | None),  # type: ignore[valid-type]
        max_leaves=3,
    )
)
def test_strict_is_sent_only_with_a_schema_that_fits(kind: Any) -> None:
    function = sent(kind)
    assert not function.get("strict") or faults(function["parameters"]) == []


def test_the_tools_own_schema_is_not_changed() -> None:
    schema = {"type": "object", "properties": {"p": {"type": "object", "properties": {}}}, "required": ["p"]}
    tool = FunctionTool("t", "d", schema, lambda p: "", strict_json_schema=True)
    assert tool.param["function"]["parameters"]["properties"]["p"]["additionalProperties"] is False
    assert schema["properties"] == {"p": {"type": "object", "properties": {}}}


def test_a_tool_without_parameters() -> None:
    def ping() -> str:
        """Ping."""
        return "pong"

    function = function_tool(strict_json_schema=True)(ping).param["function"]
    assert function["strict"] is True and faults(function["parameters"]) == []
