"""A function as a tool that a model can call (checklist A15, C05).

    def get_weather(location: str) -> str: ...          # a plain function is a tool as it is

    @function_tool(name="forecast", is_enabled=lambda ctx: ctx.turn > 0)
    async def get_forecast(location: str, agent_ctx: AgentContext) -> str: ...

Everything about a tool is worked out when it is defined, and a mistake is found there. Called by the agent's
constructor (`build_tools`) and in each turn (`tool_param`, `call.call_tool`).
"""

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

from factorial.context import AgentContext
from factorial.errors import ConfigError
from factorial.tools.docstring import read_docstring
from factorial.tools.schema import Parameters, inner, read_parameters, where

__all__ = ["FunctionTool", "build_tools", "function_tool", "tool_param"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

IsEnabled = bool | Callable[[Any], bool]


@dataclass(frozen=True, eq=False)
class FunctionTool:
    """A tool: what the model is told about it, and what is called. Made by `function_tool`."""

    name: str
    description: str
    function: Callable[..., Any]
    parameters: Parameters = field(repr=False)
    is_enabled: IsEnabled = True
    """Whether the model may call it: a fact, or a function of the agent's context."""
    is_final_output: bool = False
    """Whether it ends the run: its arguments are the output, and are always parsed."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"{where(self.function)}: {self.name!r} cannot be the name of a tool: use 1 to 64 letters, digits, "
                "'_' or '-'; function_tool(name=...) gives it one"
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself: a decorated function can still be used in code."""
        return self.function(*args, **kwargs)

    @property
    def params_json_schema(self) -> dict[str, Any]:
        """What the model is told of the arguments."""
        return self.parameters.json_schema

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
        """The entry of the request's `tools`."""
        described = {"description": self.description} if self.description else {}
        return {"type": "function", "function": {"name": self.name, **described, "parameters": self.params_json_schema}}


def tool_param(tool: FunctionTool) -> dict[str, Any]:
    """The entry that offers `tool` to a model. Made once per tool: do not change it."""
    return tool.param


@overload
def function_tool(function: Callable[..., Any], /) -> FunctionTool: ...
@overload
def function_tool(
    *, name: str | None = None, description: str | None = None, is_enabled: IsEnabled = True
) -> Callable[[Callable[..., Any]], FunctionTool]: ...
def function_tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    is_enabled: IsEnabled = True,
) -> FunctionTool | Callable[[Callable[..., Any]], FunctionTool]:
    """Make a tool of a function; as `@function_tool` or `@function_tool(...)`. Raises `ConfigError`.

    The name is the function's, the description its docstring's, unless they are given.
    """

    def make(function: Callable[..., Any]) -> FunctionTool:
        return _make(function, name, description, is_enabled)

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
    function: Any, name: str | None = None, description: str | None = None, is_enabled: IsEnabled = True
) -> FunctionTool:
    if not callable(function) or inspect.isclass(function):
        raise ConfigError(f"{function!r} is no function, so it cannot be a tool: pass a function with typed parameters")
    written = inner(function)
    described, parameters = read_docstring(written)
    return FunctionTool(
        name=name or str(getattr(written, "__name__", type(written).__name__)),
        description=described if description is None else description,
        function=function,
        parameters=read_parameters(function, parameters),
        is_enabled=is_enabled,
    )
