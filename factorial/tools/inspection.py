"""What can be found out about a user's function: where it is written, the types of its parameters, its contexts."""

import functools
import inspect
import types
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from factorial.context import AgentContext, ExecutionContext
from factorial.errors import ConfigError

__all__ = [
    "annotation_of", "bound_names", "context_kind", "execution_parameters", "return_types", "signature_of", "unwrapped",
    "where",
]  # fmt: skip

_BY_NAME: dict[str, type] = {"agent_ctx": AgentContext, "execution_ctx": ExecutionContext}


def unwrapped(function: Callable[..., Any]) -> Any:
    """The function itself, without `functools.partial` and wrappers around it."""
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    inner = inspect.unwrap(function)
    return unwrapped(inner) if isinstance(inner, functools.partial) else inner


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of `function`, without what `functools.partial` has bound by position.

    `inspect.signature` would return that of the original function for a partial that `functools.update_wrapper` has
    changed. Raises what it raises.
    """

    def is_first(inner: Any) -> bool:
        return isinstance(inner, functools.partial) or inspect.ismethod(inner) or hasattr(inner, "__signature__")

    return inspect.signature(_bare(inspect.unwrap(function, stop=is_first)))


def _bare(function: Any) -> Any:
    """A partial, and the partials in it, without attributes that were added to them."""
    if isinstance(function, functools.partial):
        return functools.partial(_bare(function.func), *function.args, **function.keywords)
    return function


def bound_names(function: Callable[..., Any]) -> frozenset[str]:
    """The parameters that `functools.partial` has bound by name, through wrappers and further partials."""
    names: set[str] = set()
    while isinstance(function, functools.partial) or hasattr(function, "__wrapped__"):
        if isinstance(function, functools.partial):
            names |= function.keywords.keys()
            function = function.func
        else:
            function = inspect.unwrap(function, stop=lambda inner: isinstance(inner, functools.partial))
    return frozenset(names)


def where(function: Callable[..., Any]) -> str:
    """`tool 'name' (file:line)`, for messages."""
    written = unwrapped(function)
    name = getattr(written, "__name__", type(written).__name__)
    code = getattr(_routine(written), "__code__", None)
    return f"tool {name!r} ({code.co_filename}:{code.co_firstlineno})" if code else f"tool {name!r}"


def annotation_of(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """The type of one parameter. Raises `ConfigError` if a name in it is not defined at run time.

    Each parameter is resolved alone, so that a context type that cannot be resolved does not affect the others.
    """
    routine = _routine(unwrapped(function))
    holder = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        hints = get_type_hints(holder, getattr(routine, "__globals__", {}), _enclosing(routine), include_extras=True)
        return hints[parameter.name]
    except TypeError:
        return parameter.annotation  # not a type; pydantic's message about it is better
    except (NameError, SyntaxError) as error:
        if parameter.name in _BY_NAME:
            return parameter.annotation
        raise ConfigError(
            f"{where(function)}: the type of parameter {parameter.name!r} is not known at run time ({error}): define "
            "or import it at the top of the module, not within a function or under TYPE_CHECKING"
        ) from None


def return_types(function: Callable[..., Any]) -> set[Any]:
    """The types that the function's return annotation is made of: `tuple[str, Batch] | None` is made of `tuple`, `str`,
    `Batch` and `NoneType`. Empty if there is none, or if it is not known at run time."""
    routine = _routine(unwrapped(function))
    returned = getattr(routine, "__annotations__", {}).get("return")
    holder = types.SimpleNamespace(__annotations__={"return": returned})
    try:
        hints = get_type_hints(holder, getattr(routine, "__globals__", {}), _enclosing(routine))
    except (NameError, SyntaxError, TypeError):
        return set()
    return set(_parts(hints.get("return")))


def _parts(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, Hashable):
        yield get_origin(annotation) or annotation
    for argument in get_args(annotation):
        yield from _parts(argument)


def context_kind(name: str, annotation: Any) -> type | None:
    """`AgentContext` or `ExecutionContext` if the parameter takes one, by its type or else by its name; or None."""
    for candidate in _alternatives(annotation):
        for kind in _BY_NAME.values():
            if isinstance(candidate, type) and issubclass(candidate, kind):
                return kind
    return _BY_NAME.get(name)


def execution_parameters(function: Callable[..., Any]) -> list[str]:
    """The names of the parameters that take the execution context, unless they are bound by `functools.partial`. The
    first parameter is not considered."""
    try:
        parameters = list(signature_of(function).parameters.values())
    except ValueError:  # a builtin, such as the method `format` of a string
        return []
    bound = bound_names(function)
    return [
        parameter.name
        for parameter in parameters[1:]
        if parameter.name not in bound
        and context_kind(parameter.name, annotation_of(function, parameter)) is ExecutionContext
    ]


def _routine(written: Any) -> Any:
    return written if inspect.isroutine(written) else type(written).__call__


def _enclosing(routine: Any) -> dict[str, Any]:
    """The variables of enclosing functions that `routine` uses."""
    names = getattr(getattr(routine, "__code__", None), "co_freevars", ())
    found: dict[str, Any] = {}
    for name, cell in zip(names, getattr(routine, "__closure__", None) or (), strict=False):
        with suppress(ValueError):  # a variable that has no value yet
            found[name] = cell.cell_contents
    return found


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
