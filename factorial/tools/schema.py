"""A function's parameters as a JSON schema for the model, and the check of the arguments that the model sends.

Both are built once per tool, from a TypedDict with the function's parameters. So a parameter may have any name, and an
argument that the model omits gets the function's own default. Not part of the schema are context parameters, and
arguments that `functools.partial` has bound: the model neither sees nor sets them.
"""

import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUndefinedAnnotation
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, to_jsonable_python
from typing_extensions import TypedDict  # pydantic supports typing's own only from Python 3.12 on

from factorial.context import AgentContext, ExecutionContext
from factorial.errors import ConfigError
from factorial.tools.inspection import annotation_of, bound_names, context_kind, signature_of, where

__all__ = ["Parameters", "described_parameters", "json_schema", "read_parameters"]


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a tool."""

    json_schema: dict[str, Any]
    """The schema that the model gets."""
    validate: Callable[[str], dict[str, Any]]
    """Parses and checks the model's JSON text. Returns the arguments by name. Raises `pydantic.ValidationError`."""
    names: tuple[str, ...]
    """The parameters that the model fills in."""
    contexts: tuple[tuple[str, type], ...] = ()
    """The parameters that Factorial fills in, each with the kind of context it takes."""

    def inject(self, agent_ctx: AgentContext, execution_ctx: ExecutionContext | None) -> dict[str, Any]:
        """The context arguments of one call, by name."""
        return {name: agent_ctx if kind is AgentContext else execution_ctx for name, kind in self.contexts}


def read_parameters(function: Callable[..., Any], described: dict[str, str]) -> Parameters:
    """The parameters of `function`; `described` has their descriptions. Raises `ConfigError` with file and line."""
    try:
        parameters = signature_of(function).parameters
    except (TypeError, ValueError, NameError) as error:
        raise ConfigError(f"{where(function)}: its signature cannot be read: {error}") from None
    fields: dict[str, Any] = {}
    contexts: list[tuple[str, type]] = []
    bound = bound_names(function)
    for parameter in parameters.values():
        if parameter.name in bound:
            continue
        annotation = annotation_of(function, parameter)
        if kind := context_kind(parameter.name, annotation):
            contexts.append((parameter.name, kind))
        else:
            _check(function, parameter)
            fields[parameter.name] = _field(annotation, parameter, described.get(parameter.name))
    adapter = _adapter(function, fields)
    return Parameters(json_schema(adapter, where(function)), adapter.validate_json, tuple(fields), tuple(contexts))


def described_parameters(function: Callable[..., Any], schema: dict[str, Any]) -> Parameters:
    """The parameters of `function` under a schema that was written by hand. Raises `ConfigError`.

    If all parameters have types, the arguments are checked against them. Otherwise the function gets whatever the model
    sends, apart from what `functools.partial` has bound.
    """
    bound = bound_names(function)
    schema = _without(bound, schema)
    signature = [one for one in signature_of(function).parameters.values() if one.name not in bound]
    if all(one.kind is not one.VAR_KEYWORD and one.annotation is not one.empty for one in signature):
        return replace(read_parameters(function, {}), json_schema=schema)
    contexts = {
        one.name: context_kind(one.name, annotation_of(function, one))
        for one in signature
        if one.kind is not one.VAR_KEYWORD
    }
    filled_in = tuple((name, kind) for name, kind in contexts.items() if kind is not None)

    def refuse_bound(arguments: dict[str, Any]) -> dict[str, Any]:
        if taken := bound & arguments.keys():
            raise ValueError(f"{sorted(taken)[0]!r} is not a parameter")
        return arguments

    adapter = TypeAdapter(Annotated[dict[str, Any], AfterValidator(refuse_bound)])
    return Parameters(schema, adapter.validate_json, tuple(schema.get("properties", ())), filled_in)


def _without(names: frozenset[str], schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that was written by hand, without these parameters."""
    changed = dict(schema)
    if isinstance(properties := schema.get("properties"), dict):
        changed["properties"] = {name: about for name, about in properties.items() if name not in names}
    if isinstance(required := schema.get("required"), list):
        changed["required"] = [name for name in required if name not in names]
    return changed if names else schema


def json_schema(adapter: TypeAdapter[Any], place: str) -> dict[str, Any]:
    """The JSON schema of `adapter`, without the titles that pydantic generates.

    Raises `ConfigError`, which begins with `place`, for a type without a JSON schema.
    """
    try:
        schema = adapter.json_schema()
    except PydanticInvalidForJsonSchema as error:
        raise ConfigError(f"{place}: a type in it has no JSON schema: {error.message}") from None
    bare: dict[str, Any] = _without_titles(schema)
    return bare


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
    """The parameter as a key of the TypedDict. A description in the annotation has precedence over the docstring's."""
    extra: dict[str, Any] = {}
    has_own = any(isinstance(mark, FieldInfo) and mark.description for mark in getattr(annotation, "__metadata__", ()))
    if description and not has_own:
        extra["description"] = description
    required = parameter.default is parameter.empty
    if not required:
        with suppress(PydanticSerializationError):  # a default that JSON cannot hold is not shown to the model
            extra["json_schema_extra"] = {"default": to_jsonable_python(parameter.default)}
    typed = Annotated[annotation, Field(**extra)] if extra else annotation
    return typed if required else NotRequired[typed]


def _adapter(function: Callable[..., Any], fields: dict[str, Any]) -> TypeAdapter[Any]:
    make: Any = TypedDict  # type checkers accept only a TypedDict whose keys are literals
    arguments = make("arguments", fields)
    arguments.__pydantic_config__ = ConfigDict(extra="forbid")
    try:
        return TypeAdapter(arguments)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation) as error:
        reason = error.message.splitlines()[0]
        raise ConfigError(
            f"{where(function)}: a parameter has a type that cannot be read from JSON ({reason}): use plain types, "
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
