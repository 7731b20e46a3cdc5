"""Functions as tools that a model can call.

    def get_weather(location: str) -> str: ...          # a plain function is a tool as it is

    @tool(name="forecast", is_enabled=lambda ctx: ctx.turn > 0)
    async def get_forecast(location: str, agent_ctx: AgentContext) -> str: ...

The schema and the checks are built when the tool is defined, so mistakes are reported there. Called by the agent's
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
from factorial.tools.deferred import (
    Deferral,
    IsEnabled,
    ToolOptions,
    check_awaits_its_batch,
    deferral_of,
    tool_options_of,
)
from factorial.tools.docstring import read_docstring
from factorial.tools.inspection import unwrapped, where
from factorial.tools.schema import Parameters, described_parameters, read_parameters
from factorial.tools.strict import strict_schema

__all__ = ["AgentTool", "FunctionTool", "build_tools", "function_tool", "tool"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

_AnyContext = TypeVar("_AnyContext", bound=AgentContext, default=Any)


@dataclass(frozen=True, eq=False)
class FunctionTool(Generic[_AnyContext]):
    """A tool: its description for the model, and the function. Usually made by `function_tool`.

    A tool that is made directly has a JSON schema of its own, as for a tool of a remote server. If all parameters of
    the function have types, the arguments are checked against them. They are passed by name.

    `FunctionTool[MyContext]` is for annotations: a tool of agents over this context.

    Raises `ConfigError` that names the function and the option.
    """

    name: str
    description: str
    params_json_schema: dict[str, Any] = field(repr=False)
    """The JSON schema of the arguments, as the model gets it."""
    on_invoke_tool: Callable[..., Any] = field(repr=False)
    """The function. Plain functions are called in a thread."""
    strict_json_schema: bool = False
    """Whether the provider should enforce the schema. Objects within it are closed for that. It applies only if all
    parameters, and all fields of models in them, are required, and if there is no dictionary. Factorial checks the
    arguments in any case."""
    is_enabled: IsEnabled = True
    """Whether the model may call the tool: a constant, or a function of the agent's context."""
    is_final_output: bool = False
    """Whether the tool ends the run. Its arguments are then the output, and are always parsed."""
    deferral: Deferral | None = None
    """What the result awaits; None if the result is what the function returns."""
    parameters: Parameters = field(default=None, repr=False)  # type: ignore[assignment]  # set in __post_init__ if it is not passed
    """The check of the arguments, and the context parameters."""

    def __post_init__(self) -> None:
        if self.parameters is None:
            if not callable(self.on_invoke_tool) or not isinstance(self.params_json_schema, dict):
                raise ConfigError(f"FunctionTool {self.name!r}: give a function, and a JSON schema as a dictionary")
            described = described_parameters(self.on_invoke_tool, self.params_json_schema)
            object.__setattr__(self, "parameters", described)
            object.__setattr__(self, "params_json_schema", described.json_schema)
            object.__setattr__(self, "deferral", self.deferral or deferral_of(self.on_invoke_tool))
        name: object = self.name
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{where(self.function)}: {self.name!r} cannot be the name of a tool: use 1 to 64 letters, digits, "
                "'_' or '-'; function_tool(name=...) sets it"
            )
        check_awaits_its_batch(self.function, self.deferral)
        description: object = self.description
        if not isinstance(description, str):
            raise ConfigError(f"{where(self.function)}: description={description!r}: give text")
        if not isinstance(self.is_enabled, bool) and not can_take(self.is_enabled, "agent_ctx"):
            raise ConfigError(
                f"{where(self.function)}: is_enabled={self.is_enabled!r}: use True, False, or a function of the "
                "agent's context, as in lambda ctx: ..."
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself. A decorated function can still be used in code."""
        return self.function(*args, **kwargs)

    @property
    def function(self) -> Callable[..., Any]:
        """The function that is called."""
        return self.on_invoke_tool

    def enabled_for(self, agent_ctx: AgentContext) -> bool:
        """Whether the model may call the tool in the state `agent_ctx`."""
        return self.is_enabled(agent_ctx) if callable(self.is_enabled) else self.is_enabled

    @cached_property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function. Others run in a thread."""
        function: Any = self.function
        return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)

    @cached_property
    def param(self) -> dict[str, Any]:
        """The tool's entry in the `tools` of a request. It is made once; do not change it."""
        described: dict[str, Any] = {"name": self.name}
        if self.description:
            described["description"] = self.description
        described["parameters"] = self.params_json_schema
        if self.strict_json_schema and (closed := strict_schema(self.params_json_schema)) is not None:
            described |= {"parameters": closed, "strict": True}
        return {"type": "function", "function": described}

    def to_openai_tool_schema(self) -> dict[str, Any]:
        """The same as `param`, under the name that 0.1.x had."""
        return self.param


AgentTool = FunctionTool


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
    """Make a tool of a function, as `@function_tool` or `@function_tool(...)`. `tool` is the same.

    Parameters:
        name: by default the function's name.
        description: by default the description in the docstring.
        strict_json_schema: see `FunctionTool`.
        is_enabled: whether the model may call the tool: a constant, or a function of the agent's context.

    Raises `ConfigError` that names the function, with file and line, and the parameter.
    """

    options = ToolOptions(name, description, strict_json_schema, is_enabled)

    def make(function: Callable[..., Any]) -> FunctionTool:
        return _make(function, options)

    return make if function is None else make(function)


tool = function_tool


def build_tools(functions: Iterable[Callable[..., Any]], *, parse_args: bool = True) -> dict[str, FunctionTool]:
    """The tools of an agent by name, from functions and tools. Raises `ConfigError` if two have the same name.

    `parse_args=False` is for agents whose tools get their arguments as raw text. Each tool may then have at most one
    parameter that the model fills in.
    """
    tools: dict[str, FunctionTool] = {}
    for function in functions:
        made = function if isinstance(function, FunctionTool) else _make(function)
        if made.name in tools:
            raise ConfigError(
                f"two tools have the name {made.name!r}: {where(tools[made.name].function)} and "
                f"{where(made.function)}: rename one with function_tool(name=...)"
            )
        if not parse_args and len(made.parameters.names) > 1 and not made.is_final_output:
            raise ConfigError(
                f"{where(made.function)} has the parameters {', '.join(made.parameters.names)}, but with "
                "parse_tool_args=False a tool takes a single one: the raw text of its arguments"
            )
        tools[made.name] = made
    return tools


def _make(function: Any, options: ToolOptions | None = None) -> FunctionTool:
    if not callable(function) or inspect.isclass(function):
        raise ConfigError(
            f"{function!r} is not a function, so it cannot be a tool: pass a function with typed parameters"
        )
    marked = tool_options_of(function) or ToolOptions()
    if options is None or options == ToolOptions():
        options = marked
    elif marked != ToolOptions():
        raise ConfigError(f"{where(function)} has options from two decorators: give them to one")
    written = unwrapped(function)
    summary, descriptions = read_docstring(written)
    parameters = read_parameters(function, descriptions)
    return FunctionTool(
        name=options.name or str(getattr(written, "__name__", type(written).__name__)),
        description=summary if options.description is None else options.description,
        params_json_schema=parameters.json_schema,
        on_invoke_tool=function,
        strict_json_schema=options.strict_json_schema,
        is_enabled=options.is_enabled,
        parameters=parameters,
        deferral=deferral_of(function),
    )
