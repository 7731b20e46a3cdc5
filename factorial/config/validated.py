"""What makes a class a settings class, and how its objects travel to another process."""

from collections.abc import Mapping
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from factorial.config.mistakes import explain
from factorial.errors import ConfigError

__all__ = ["as_mapping", "from_mapping", "settings"]

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[_T]) -> type[_T]:
    """Make `cls` a frozen, validated dataclass whose constructor raises `ConfigError`."""
    made = pydantic_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))(cls)
    validated_init = made.__init__

    def __init__(self: _T, **values: Any) -> None:
        try:
            validated_init(self, **values)
        except ValidationError as invalid:
            raise ConfigError(f"{made.__name__}: {explain(made, invalid)}") from None

    __init__.__qualname__ = f"{made.__name__}.__init__"
    made.__init__ = __init__  # type: ignore[method-assign,assignment]  # narrower errors, the same arguments
    return made  # type: ignore[return-value]  # pydantic types it as its own dataclass


def as_mapping(config: Any) -> Mapping[str, Any]:
    """A settings object as plain data."""
    plain: Mapping[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return plain


def from_mapping(cls: type[_T], data: Mapping[str, Any]) -> _T:
    """The settings object that `as_mapping` made `data` from."""
    return TypeAdapter(cls).validate_python(data)
