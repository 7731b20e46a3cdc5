"""How a function becomes a tool: name, description, schema, and messages about mistakes. Nothing is fake."""

import functools
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from factorial.context import AgentContext, Batch, ExecutionContext
from factorial.errors import ConfigError
from factorial.tools import FunctionTool, build_tools, execution_parameters, forking_tool, function_tool


class Unit(Enum):
    CELSIUS = "c"
    FAHRENHEIT = "f"


class Place(BaseModel):
    """A place."""

    title: str
    country: str = "FR"


@dataclass
class Span:
    days: int


def get_weather(location: str) -> str:
    """Get the current weather for a location"""
    return f"The weather in {location} is sunny and 72F"


def schema_of(function: Callable[..., Any]) -> dict[str, Any]:
    return function_tool(function).params_json_schema


def test_a_plain_function_is_a_tool() -> None:
    """Nothing is sent that the user did not write, except for the schema itself."""
    (tool,) = build_tools([get_weather]).values()
    assert tool.param == {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather for a location",
            "parameters": {
                "type": "object",
                "properties": {"location": {"type": "string"}},
                "required": ["location"],
                "additionalProperties": False,
            },
        },
    }
    assert tool.param is tool.param


def test_name_description_and_enabling() -> None:
    @function_tool(name="forecast", description="Look ahead.", is_enabled=lambda ctx: ctx.turn > 0)
    def get_forecast(days: int) -> str:
        """Not this."""
        return f"{days} days of sun"

    assert isinstance(get_forecast, FunctionTool)
    assert (get_forecast.name, get_forecast.description) == ("forecast", "Look ahead.")
    assert not get_forecast.enabled_for(AgentContext(query="q"))
    assert get_forecast.enabled_for(AgentContext(query="q", turn=1))
    assert get_forecast(days=3) == "3 days of sun"


def test_the_bare_decorator() -> None:
    tool = function_tool(get_weather)
    assert tool.name == "get_weather" and tool.enabled_for(AgentContext(query="q"))
    assert build_tools([tool])["get_weather"] is tool


def test_types_of_every_kind() -> None:
    def book(
        place: Place,
        span: Span,
        unit: Unit,
        mode: Literal["bus", "train"],
        guests: list[str],
        rate: Annotated[float, Field(gt=0, description="per night")],
        note: str | None = None,
        when: tuple[int, int] = (9, 17),
        unit_default: Unit = Unit.CELSIUS,
    ) -> None: ...

    schema = schema_of(book)
    assert schema["required"] == ["place", "span", "unit", "mode", "guests", "rate"]
    properties = schema["properties"]
    assert properties["rate"] == {"type": "number", "exclusiveMinimum": 0, "description": "per night"}
    assert properties["note"]["default"] is None
    assert properties["when"]["default"] == [9, 17]
    assert properties["unit_default"]["default"] == "c"
    assert properties["mode"] == {"type": "string", "enum": ["bus", "train"]}
    assert schema["$defs"]["Place"]["properties"]["title"] == {"type": "string"}  # a field named title


def test_parameters_may_have_any_name() -> None:
    """Names that pydantic models reserve or warn about are ordinary names here."""

    def odd(schema: str, copy: int, model_config: str, _hidden: int, title: str, self: int) -> None: ...

    assert list(schema_of(odd)["properties"]) == ["schema", "copy", "model_config", "_hidden", "title", "self"]


def test_no_parameters() -> None:
    def now() -> str:
        return "12:00"

    assert schema_of(now) == {"type": "object", "properties": {}, "additionalProperties": False}
    assert "description" not in function_tool(now).param["function"]


def test_methods_partials_and_callable_objects() -> None:
    class Shop:
        def buy(self, item: str) -> str:
            """Buy."""
            return item

        async def __call__(self, item: str) -> str:
            """Order."""
            return item

    tools = build_tools([Shop().buy, Shop(), functools.partial(get_weather)])
    assert list(tools) == ["buy", "Shop", "get_weather"]
    assert [tool.description for tool in tools.values()][:1] == ["Buy."]
    assert all(len(tool.parameters.names) == 1 for tool in tools.values())
    assert [tool.is_async for tool in tools.values()] == [False, True, False]


def untyped(a, b: int) -> None: ...  # type: ignore[no-untyped-def]
def variable(*numbers: int) -> None: ...
def keywords(**options: int) -> None: ...
def positional(a: int, /) -> None: ...
def unserialisable(lock: Callable[[], int]) -> None: ...
def nonsense(a: subprocess.Popen[bytes]) -> None: ...
def unresolved(a: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821
def old_style(a: int = Field(3)) -> None: ...


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (untyped, "parameter 'a' has no type: annotate it, for example a: str"),
        (variable, "parameter 'numbers' is of variable length"),
        (keywords, "parameter 'options' is of variable length"),
        (positional, "parameter 'a' is positional-only"),
        (unserialisable, "JSON"),
        (nonsense, "use plain types"),
        (unresolved, "'Nowhere' is not defined"),
        (old_style, "has Field(...) as its default"),
    ],
)
def test_a_mistake_is_named_with_file_and_line(function: Callable[..., Any], says: str) -> None:
    with pytest.raises(ConfigError) as mistake:
        build_tools([function])
    assert says in str(mistake.value)
    assert f"tool '{function.__name__}' ({__file__}:{function.__code__.co_firstlineno})" in str(mistake.value)


@pytest.mark.parametrize("value", ["get_weather", None, 3, Place])
def test_what_is_not_a_function_is_not_a_tool(value: Any) -> None:
    with pytest.raises(ConfigError, match="is not a function"):
        build_tools([value])


def test_names_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"'<lambda>' cannot be the name of a tool.*function_tool\(name=\.\.\.\)"):
        build_tools([lambda: 1])
    with pytest.raises(ConfigError, match=r"two tools have the name 'get_weather': tool 'get_weather' \(.*:\d+\)"):
        build_tools([get_weather, function_tool(name="get_weather")(lambda: 1)])


def test_raw_arguments_need_a_single_parameter() -> None:
    def two(a: int, b: int) -> None: ...

    def one(raw: str, agent_ctx: AgentContext) -> None: ...

    assert build_tools([one], parse_args=False)
    with pytest.raises(ConfigError, match="parameters a, b, but with parse_tool_args=False"):
        build_tools([two], parse_args=False)


def test_the_openai_package_is_not_imported() -> None:
    """In a process of its own. An agent module must import quickly."""
    code = "import sys, factorial.models, factorial.tools, factorial.testing; print('openai' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "False\n"


# -- arguments that functools.partial has bound


def read_mail(folder: str, user_id: str, token: str = "none", limit: int = 10) -> str:
    """Read mail.

    Args:
        folder: where to look
        user_id: whose mail
    """
    return f"{folder} of {user_id} with {token}, {limit}"


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


def named(function: Any) -> Any:
    return functools.update_wrapper(function, read_mail)


BOUND: list[Any] = [
    functools.partial(read_mail, user_id="ada", token="tok-1"),
    functools.partial(functools.partial(read_mail, token="tok-1"), user_id="ada"),
    functools.partial(named(functools.partial(read_mail, token="tok-1")), user_id="ada"),
    named(functools.partial(read_mail, user_id="ada", token="tok-1")),
    logged(functools.partial(read_mail, user_id="ada", token="tok-1")),
    functools.partial(logged(read_mail), user_id="ada", token="tok-1"),
    logged(named(functools.partial(logged(read_mail), user_id="ada", token="tok-1"))),
]


@pytest.mark.parametrize("function", BOUND)
def test_what_is_bound_by_name_is_neither_shown_to_the_model_nor_taken_from_it(function: Any) -> None:
    [tool] = build_tools([function]).values()
    assert tool.name == "read_mail"
    assert list(tool.params_json_schema["properties"]) == ["folder", "limit"]
    assert tool.params_json_schema["required"] == ["folder"]
    for secret in ("ada", "tok-1", "user_id", "token"):
        assert secret not in json.dumps(tool.param)
        assert secret not in repr(tool)
    assert tool.parameters.validate('{"folder": "inbox"}') == {"folder": "inbox"}
    with pytest.raises(ValidationError, match="user_id"):
        tool.parameters.validate('{"folder": "inbox", "user_id": "eve"}')
    assert tool.function(folder="inbox") == "inbox of ada with tok-1, 10"


@pytest.mark.parametrize(
    "function", [functools.partial(read_mail, "inbox"), named(functools.partial(read_mail, "inbox"))]
)
def test_what_is_bound_by_position_is_neither_shown_nor_taken(function: Any) -> None:
    [tool] = build_tools([function]).values()
    assert list(tool.params_json_schema["properties"]) == ["user_id", "token", "limit"]
    with pytest.raises(ValidationError, match="folder"):
        tool.parameters.validate('{"folder": "sent", "user_id": "eve"}')
    assert tool.function(user_id="ada") == "inbox of ada with none, 10"


def test_a_bound_context_is_not_filled_in() -> None:
    def look(agent_ctx: AgentContext, execution_ctx: ExecutionContext | None) -> str:
        """Look."""
        return agent_ctx.query

    mine = AgentContext(query="mine")
    [tool] = build_tools([functools.partial(look, agent_ctx=mine)]).values()
    assert tool.parameters.inject(AgentContext(query="q"), None) == {"execution_ctx": None}
    assert execution_parameters(functools.partial(look, execution_ctx=None)) == []


@pytest.mark.parametrize("is_typed", [True, False])
def test_what_is_bound_is_left_out_of_a_schema_that_was_written_by_hand(is_typed: bool) -> None:
    def untyped(**kwargs: Any) -> str:
        return json.dumps(kwargs)

    both = {"folder": {"type": "string"}, "user_id": {"type": "string"}}
    schema = {"type": "object", "properties": both, "required": ["folder", "user_id"]}
    function = functools.partial(read_mail if is_typed else untyped, user_id="ada")
    tool = FunctionTool("mail", "Read mail.", schema, function)
    assert tool.param["function"]["parameters"]["properties"] == {"folder": {"type": "string"}}
    assert tool.param["function"]["parameters"]["required"] == ["folder"]
    assert schema["required"] == ["folder", "user_id"]
    assert tool.parameters.validate('{"folder": "inbox"}') == {"folder": "inbox"}
    with pytest.raises(ValidationError, match="user_id"):
        tool.parameters.validate('{"folder": "inbox", "user_id": "eve"}')


# -- batches that nothing awaits


async def research(execution_ctx: ExecutionContext) -> Batch:
    raise NotImplementedError


async def research_and_tell(execution_ctx: ExecutionContext) -> tuple[str, "Batch"]:
    raise NotImplementedError


def research_perhaps(execution_ctx: ExecutionContext) -> Annotated[Batch | None, "a batch"]:
    raise NotImplementedError


def research_twice(execution_ctx: ExecutionContext) -> list[Batch]:
    raise NotImplementedError


def research_later(execution_ctx: ExecutionContext) -> Awaitable[Batch]:
    raise NotImplementedError


@pytest.mark.parametrize("function", [research, research_and_tell, research_perhaps, research_twice, research_later])
def test_a_tool_that_returns_a_batch_has_to_await_it(function: Any) -> None:
    with pytest.raises(ConfigError, match=rf"tool '{function.__name__}' \(.*\) returns a Batch: mark .*@forking_tool"):
        build_tools([function])
    with pytest.raises(ConfigError, match="returns a Batch"):
        build_tools([functools.partial(function)])
    with pytest.raises(ConfigError, match="returns a Batch"):
        FunctionTool("research", "", {"type": "object"}, function)


def test_a_forking_tool_may_say_that_it_returns_a_batch_and_other_tools_anything_else() -> None:
    @forking_tool(timeout=60)
    async def fork(execution_ctx: ExecutionContext) -> Batch:
        raise NotImplementedError

    def unknown() -> "Nowhere":  # type: ignore[name-defined]  # noqa: F821
        raise NotImplementedError

    def odd() -> [Batch]:  # type: ignore[valid-type]
        raise NotImplementedError

    def literal() -> Literal["a", 1] | Callable[[int], str]:
        raise NotImplementedError

    assert len(build_tools([fork, unknown, odd, literal])) == 4
