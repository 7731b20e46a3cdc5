"""A function as a tool that a model can call (checklist A15, C05).

    def get_weather(location: str) -> str: ...          # a plain function is a tool as it is

    @function_tool(name="forecast", is_enabled=lambda ctx: ctx.turn > 0)
    async def get_forecast(location: str, agent_ctx: AgentContext) -> str: ...

Everything about a tool is worked out when it is defined, and a mistake is found there. Called by the agent's
constructor (`build_tools`) and in each turn (`FunctionTool.param`, `call.call_tool`).
"""

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, overload

from typing_extensions import TypeVar  # with a default, which typing has from Python 3.13

from factorial._core.signature import can_take
from factorial.context import AgentContext
from factorial.errors import ConfigError
from factorial.tools.deferred import Deferral, deferral_of
from factorial.tools.docstring import read_docstring
from factorial.tools.schema import Parameters, described_parameters, inner, read_parameters, where

__all__ = ["FunctionTool", "build_tools", "function_tool"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

IsEnabled = bool | Callable[[Any], bool]

AnyContext = TypeVar("AnyContext", bound=AgentContext, default=Any)


@dataclass(frozen=True, eq=False)
class FunctionTool(Generic[AnyContext]):
    """A tool: what the model is told about it, and what is called. Made by `function_tool`.

    Made by hand, it is told with a JSON schema of its own, as for a tool of another server. The arguments are checked
    against the function's types then, as far as it has any, and passed by name.

    `FunctionTool[MyContext]` is for annotations: a tool of agents over this context.
    """

    name: str
    description: str
    params_json_schema: dict[str, Any] = field(repr=False)
    """What the model is told of the arguments."""
    on_invoke_tool: Callable[..., Any]
    strict_json_schema: bool = False
    """Ask the provider to hold the model to the schema, if all parameters are required. They are checked anyway."""
    is_enabled: IsEnabled = True
    """Whether the model may call it: a fact, or a function of the agent's context."""
    is_final_output: bool = False
    """Whether it ends the run: its arguments are the output, and are always parsed."""
    deferral: Deferral | None = None
    """What its result waits for, if it is not simply what the function returns."""
    parameters: Parameters = field(default=None, repr=False)  # type: ignore[assignment]  # made here, if not given
    """The check of the arguments, and the contexts to fill in."""

    def __post_init__(self) -> None:
        if self.parameters is None:
            if not callable(self.on_invoke_tool) or not isinstance(self.params_json_schema, dict):
                raise ConfigError(f"FunctionTool {self.name!r}: give a function, and a JSON schema as a dictionary")
            described = described_parameters(self.on_invoke_tool, self.params_json_schema)
            object.__setattr__(self, "parameters", described)
            object.__setattr__(self, "deferral", self.deferral or deferral_of(self.on_invoke_tool))
        name: object = self.name
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{where(self.function)}: {self.name!r} cannot be the name of a tool: use 1 to 64 letters, digits, "
                "'_' or '-'; function_tool(name=...) gives it one"
            )
        description: object = self.description
        if not isinstance(description, str):
            raise ConfigError(f"{where(self.function)}: description={description!r}: give text")
        if not isinstance(self.is_enabled, bool) and not can_take(self.is_enabled, "agent_ctx"):
            raise ConfigError(
                f"{where(self.function)}: is_enabled={self.is_enabled!r}: use True, False, or a function of the "
                "agent's context, as in lambda ctx: ..."
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself: a decorated function can still be used in code."""
        return self.function(*args, **kwargs)

    @property
    def function(self) -> Callable[..., Any]:
        """What is called."""
        return self.on_invoke_tool

    def enabled_for(self, agent_ctx: AgentContext) -> bool:
        """Whether the model may call the tool in this state."""
        return self.is_enabled(agent_ctx) if callable(self.is_enabled) else self.is_enabled

    @cached_property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function; others run in a thread."""
        function: Any = self.function
        return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)

    @cached_property
    def param(self) -> dict[str, Any]:
        """The entry of the request's `tools`, which offers the tool to a model. Made once: do not change it."""
        told: dict[str, Any] = {"name": self.name}
        if self.description:
            told["description"] = self.description
        told["parameters"] = schema = self.params_json_schema
        if self.strict_json_schema and set(schema.get("properties", ())) == set(schema.get("required", ())):
            told["strict"] = True
        return {"type": "function", "function": told}

    def to_openai_tool_schema(self) -> dict[str, Any]:
        """`param`, as 0.1.x called it."""
        return self.param


@overload
def function_tool(function: Callable[..., Any], /) -> FunctionTool: ...
@overload
def function_tool(
    *,
    name: str | None = None,
    description: str | None = None,
    strict_json_schema: bool = False,
    is_enabled: IsEnabled = True,
) -> Callable[[Callable[..., Any]], FunctionTool]: ...
def function_tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    strict_json_schema: bool = False,
    is_enabled: IsEnabled = True,
) -> FunctionTool | Callable[[Callable[..., Any]], FunctionTool]:
    """Make a tool of a function; as `@function_tool` or `@function_tool(...)`. Raises `ConfigError`.

    The name is the function's, the description its docstring's, unless they are given.
    """

    def make(function: Callable[..., Any]) -> FunctionTool:
        return _make(function, name, description, strict_json_schema, is_enabled)

    return make if function is None else make(function)


def build_tools(functions: Iterable[Callable[..., Any]], *, parse_args: bool = True) -> dict[str, FunctionTool]:
    """The tools of an agent by name, from functions and tools. Raises `ConfigError` for a name that comes twice.

    `parse_args=False` is for agents whose tools get their arguments as raw text: each may take one at most.
    """
    tools: dict[str, FunctionTool] = {}
    for function in functions:
        tool = function if isinstance(function, FunctionTool) else _make(function)
        if tool.name in tools:
            raise ConfigError(
                f"two tools have the name {tool.name!r}: {where(tools[tool.name].function)} and "
                f"{where(tool.function)}: rename one with function_tool(name=...)"
            )
        if not parse_args and len(tool.parameters.names) > 1 and not tool.is_final_output:
            raise ConfigError(
                f"{where(tool.function)} has the parameters {', '.join(tool.parameters.names)}, but with "
                "parse_tool_args=False a tool takes a single one: the raw text of its arguments"
            )
        tools[tool.name] = tool
    return tools


def _make(
    function: Any,
    name: str | None = None,
    description: str | None = None,
    strict: bool = False,
    is_enabled: IsEnabled = True,
) -> FunctionTool:
    if not callable(function) or inspect.isclass(function):
        raise ConfigError(f"{function!r} is no function, so it cannot be a tool: pass a function with typed parameters")
    written = inner(function)
    described, described_ones = read_docstring(written)
    parameters = read_parameters(function, described_ones)
    return FunctionTool(
        name=name or str(getattr(written, "__name__", type(written).__name__)),
        description=described if description is None else description,
        params_json_schema=parameters.json_schema,
        on_invoke_tool=function,
        strict_json_schema=strict,
        is_enabled=is_enabled,
        parameters=parameters,
        deferral=deferral_of(function),
    )
