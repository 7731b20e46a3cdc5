"""A function's parameters as the model sees them, and the check of what the model sends. Built once per tool.

The parameters become a TypedDict, so that a parameter may have any name, and an argument that the model leaves
out is left to the function's own default. Context parameters (checklist C05) never show.
"""

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, NotRequired, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUndefinedAnnotation
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, to_jsonable_python
from typing_extensions import TypedDict  # pydantic takes typing's own from Python 3.12 on only

from factorial.context import AgentContext, ExecutionContext
from factorial.errors import ConfigError

__all__ = [
    "Parameters",
    "described_parameters",
    "execution_parameters",
    "inner",
    "json_schema",
    "read_parameters",
    "where",
]

_BY_NAME: dict[str, type] = {"agent_ctx": AgentContext, "execution_ctx": ExecutionContext}


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a tool takes."""

    json_schema: dict[str, Any]
    """What the model is told."""
    validate: Callable[[str], dict[str, Any]]
    """The arguments in the model's JSON text, by name. Raises `pydantic.ValidationError`."""
    names: tuple[str, ...]
    """The parameters that the model fills in."""
    contexts: tuple[tuple[str, type], ...] = ()
    """The parameters that we fill in, each with the kind of context it takes."""

    def inject(self, agent_ctx: AgentContext, execution_ctx: ExecutionContext | None) -> dict[str, Any]:
        """The context arguments of one call."""
        return {name: agent_ctx if kind is AgentContext else execution_ctx for name, kind in self.contexts}


def read_parameters(function: Callable[..., Any], described: dict[str, str]) -> Parameters:
    """The parameters of `function`; `described` has their descriptions. Raises `ConfigError` with file and line."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError, NameError) as error:
        raise ConfigError(f"{where(function)}: its signature cannot be read: {error}") from None
    fields: dict[str, Any] = {}
    contexts: list[tuple[str, type]] = []
    for parameter in parameters.values():
        annotation = _annotation(function, parameter)
        if kind := _context_kind(parameter.name, annotation):
            contexts.append((parameter.name, kind))
        else:
            _check(function, parameter)
            fields[parameter.name] = _field(annotation, parameter, described.get(parameter.name))
    adapter = _adapter(function, fields)
    return Parameters(json_schema(adapter, where(function)), adapter.validate_json, tuple(fields), tuple(contexts))


def described_parameters(function: Callable[..., Any], schema: dict[str, Any]) -> Parameters:
    """The parameters of `function` as somebody else describes them to the model. Raises `ConfigError`.

    A function with types of its own has its arguments checked; one with `**arguments` gets whatever the model sends.
    """
    signature = inspect.signature(function).parameters.values()
    if all(one.kind is not one.VAR_KEYWORD and one.annotation is not one.empty for one in signature):
        return replace(read_parameters(function, {}), json_schema=schema)
    contexts = {
        one.name: _context_kind(one.name, _annotation(function, one))
        for one in signature
        if one.kind is not one.VAR_KEYWORD
    }
    filled_in = tuple((name, kind) for name, kind in contexts.items() if kind is not None)
    return Parameters(schema, TypeAdapter(dict[str, Any]).validate_json, tuple(schema.get("properties", ())), filled_in)


def execution_parameters(function: Callable[..., Any]) -> list[str]:
    """The parameters of `function` that take the execution context; the first one takes something else."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # a builtin, such as the method `format` of a text
        return []
    return [
        parameter.name
        for parameter in parameters[1:]
        if _context_kind(parameter.name, _annotation(function, parameter)) is ExecutionContext
    ]


def json_schema(adapter: TypeAdapter[Any], place: str) -> dict[str, Any]:
    """The JSON schema of `adapter` without the titles that pydantic makes up. `place` is named in errors."""
    try:
        schema = adapter.json_schema()
    except PydanticInvalidForJsonSchema as error:
        raise ConfigError(f"{place}: a type in it has no JSON schema: {error.message}") from None
    bare: dict[str, Any] = _without_titles(schema)
    return bare


def inner(function: Callable[..., Any]) -> Any:
    """The function that was written, without `functools.partial` and wrappers around it."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(function)


def where(function: Callable[..., Any]) -> str:
    """`tool 'name' (file:line)`, for messages."""
    written = inner(function)
    name = getattr(written, "__name__", type(written).__name__)
    code = getattr(_routine(written), "__code__", None)
    return f"tool {name!r} ({code.co_filename}:{code.co_firstlineno})" if code else f"tool {name!r}"


def _routine(written: Any) -> Any:
    return written if inspect.isroutine(written) else type(written).__call__


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """The parameter's type. One at a time: a context type that cannot be resolved must not hide the others."""
    routine = _routine(inner(function))
    holder = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        hints = get_type_hints(holder, getattr(routine, "__globals__", {}), _enclosing(routine), include_extras=True)
        return hints[parameter.name]
    except TypeError:
        return parameter.annotation  # no type at all; pydantic says so better
    except (NameError, SyntaxError) as error:
        if parameter.name in _BY_NAME:
            return parameter.annotation
        raise ConfigError(
            f"{where(function)}: the type of parameter {parameter.name!r} is not known at run time ({error}): define "
            "or import it at the top of the module, not within a function or under TYPE_CHECKING"
        ) from None


def _enclosing(routine: Any) -> dict[str, Any]:
    """The variables of enclosing functions that `routine` uses."""
    names = getattr(getattr(routine, "__code__", None), "co_freevars", ())
    found: dict[str, Any] = {}
    for name, cell in zip(names, getattr(routine, "__closure__", None) or (), strict=False):
        with suppress(ValueError):  # a variable that has no value yet
            found[name] = cell.cell_contents
    return found


def _context_kind(name: str, annotation: Any) -> type | None:
    """`AgentContext` or `ExecutionContext` if the parameter takes one: by its type, else by its name."""
    for candidate in _alternatives(annotation):
        for kind in _BY_NAME.values():
            if isinstance(candidate, type) and issubclass(candidate, kind):
                return kind
    return _BY_NAME.get(name)


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The types that `annotation` allows, without `Annotated`, `Optional`, `Union` and type variables around them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for choice in get_args(annotation):
            yield from _alternatives(choice)
    elif isinstance(annotation, TypeVar):
        yield from _alternatives(annotation.__bound__)
    elif origin is None:
        yield annotation


def _check(function: Callable[..., Any], parameter: inspect.Parameter) -> None:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        problem = "is of variable length: name and type each parameter, so that the model knows them"
    elif parameter.kind is parameter.POSITIONAL_ONLY:
        problem = "is positional-only: remove the '/', arguments are passed by name"
    elif parameter.annotation is parameter.empty:
        problem = f"has no type: annotate it, for example {parameter.name}: str"
    elif isinstance(parameter.default, FieldInfo):
        problem = f"has Field(...) as its default: write {parameter.name}: Annotated[<type>, Field(...)] instead"
    else:
        return
    raise ConfigError(f"{where(function)}: parameter {parameter.name!r} {problem}")


def _field(annotation: Any, parameter: inspect.Parameter, description: str | None) -> Any:
    """The parameter as a key of the TypedDict. A description of its own beats the docstring's."""
    extra: dict[str, Any] = {}
    has_own = any(isinstance(mark, FieldInfo) and mark.description for mark in getattr(annotation, "__metadata__", ()))
    if description and not has_own:
        extra["description"] = description
    required = parameter.default is parameter.empty
    if not required:
        with suppress(PydanticSerializationError):  # a default that is no JSON is not shown to the model
            extra["json_schema_extra"] = {"default": to_jsonable_python(parameter.default)}
    typed = Annotated[annotation, Field(**extra)] if extra else annotation
    return typed if required else NotRequired[typed]


def _adapter(function: Callable[..., Any], fields: dict[str, Any]) -> TypeAdapter[Any]:
    make: Any = TypedDict  # type checkers know it with keys that stand in the source only
    arguments = make("arguments", fields)
    arguments.__pydantic_config__ = ConfigDict(extra="forbid")
    try:
        return TypeAdapter(arguments)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation) as error:
        reason = error.message.splitlines()[0]
        raise ConfigError(
            f"{where(function)}: a parameter has a type that cannot come from JSON ({reason}): use plain types, "
            "dataclasses or pydantic models, or take it from the context"
        ) from None


def _without_titles(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    bare: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            bare[key] = {name: _without_titles(part) for name, part in value.items()}
        elif key in ("default", "examples", "const", "enum"):
            bare[key] = value
        elif key != "title":
            bare[key] = _without_titles(value)
    return bare
