"""Context parameters, in a module whose annotations are strings. Nothing is fake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Optional, TypeVar

import pytest
from pydantic import Field

from factorial.context import AgentContext, ExecutionContext
from factorial.errors import ConfigError
from factorial.tools import call_tool, function_tool
from tests.unit.test_tools_calls import NoEvents, tool_call

if TYPE_CHECKING:
    from collections import OrderedDict


class Trip(AgentContext):
    stops: list[str] = Field(default_factory=list)


Bound = TypeVar("Bound", bound=AgentContext)


def by_name(city: str, agent_ctx, execution_ctx) -> None: ...  # type: ignore[no-untyped-def]
def by_type(city: str, mine: Trip, run: ExecutionContext) -> None: ...
def optional(city: str, mine: Optional[Trip], run: ExecutionContext | None = None) -> None: ...  # noqa: UP045
def annotated(city: str, mine: Annotated[Trip, "state"], run: Annotated[ExecutionContext | None, 1]) -> None: ...
def bound(city: str, mine: Bound, *, run: ExecutionContext) -> None: ...
def for_checkers_only(city: str, agent_ctx: OrderedDict, run: ExecutionContext) -> None: ...  # type: ignore[type-arg]


@pytest.mark.parametrize("function", [by_name, by_type, optional, annotated, bound, for_checkers_only])
def test_contexts_are_not_in_the_schema(function: Any) -> None:
    tool = function_tool(function)
    assert list(tool.params_json_schema["properties"]) == ["city"]
    agent_ctx, execution_ctx = Trip(query="q"), ExecutionContext("t", "o", NoEvents())
    assert list(tool.parameters.inject(agent_ctx, execution_ctx).values()) == [agent_ctx, execution_ctx]


def test_a_class_of_the_enclosing_function() -> None:
    class Local(AgentContext): ...

    def visit(city: str, mine: Local) -> str:
        return f"{city} {Local.__name__}"

    assert function_tool(visit).parameters.contexts == (("mine", AgentContext),)


def test_a_type_that_is_defined_for_type_checkers_only() -> None:
    def visit(order: OrderedDict[str, int]) -> None: ...

    with pytest.raises(ConfigError, match=r"'order' is not known at run time.*TYPE_CHECKING"):
        function_tool(visit)


async def test_a_change_to_the_context_persists() -> None:
    def visit(city: str, agent_ctx: Trip) -> str:
        agent_ctx.stops.append(city)
        return f"{len(agent_ctx.stops)} stops"

    trip = Trip(query="q")
    for expected in ("1 stops", "2 stops"):
        result = await call_tool(function_tool(visit), tool_call("visit", city="Rome"), trip, None)
        assert result.output_str == expected
    assert trip.stops == ["Rome", "Rome"]


async def test_the_model_cannot_fill_in_a_context() -> None:
    def visit(city: str, agent_ctx: Trip) -> str:
        return city

    call = tool_call("visit", city="Rome", agent_ctx={"query": "forged"})
    result = await call_tool(function_tool(visit), call, Trip(query="q"), None)
    assert result.error and "'agent_ctx' is not a parameter" in result.error
