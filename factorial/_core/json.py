"""The one way in which JSON is written and read."""

from typing import Any

from pydantic import BaseModel
from pydantic_core import from_json, to_json

from factorial._core.text import printable_text

__all__ = ["dump_anything", "dump_json", "is_json_object", "load_json", "load_strict_json"]

_DEEPEST = 20


def dump_json(value: Any) -> bytes:
    """`value` as compact JSON in UTF-8. Datetimes, enums, sets and pydantic models are supported.

    Raises `pydantic_core.PydanticSerializationError` for anything JSON cannot hold.
    """
    return to_json(value, inf_nan_mode="null")


def dump_anything(value: Any) -> bytes:
    """`value` as compact JSON. What JSON cannot hold is written as text. Raises nothing."""
    try:
        return to_json(value, inf_nan_mode="null", serialize_unknown=True)
    except Exception:  # users' objects: undecodable bytes, circular references, serialisers that raise
        return to_json(_printable(value, _DEEPEST), inf_nan_mode="null")


def load_json(data: bytes | str) -> Any:
    """The value that `dump_json` wrote."""
    return from_json(data)


def load_strict_json(text: str) -> Any:
    """The value in JSON text. Raises `ValueError` also for NaN and infinity, which are not in the standard."""
    return from_json(text, allow_inf_nan=False)


def is_json_object(text: str) -> bool:
    """Whether `text` is a JSON object by the standard."""
    try:
        return isinstance(load_strict_json(text), dict)
    except ValueError:
        return False


def _printable(value: Any, depth: int) -> Any:
    """`value` as plain data that JSON can hold."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return printable_text(value)
    if isinstance(value, bytes | bytearray):
        return value.decode(errors="replace")
    if depth and isinstance(value, BaseModel):
        value = dict(value)
    if depth and isinstance(value, dict):
        return {_printable(str(key), 0): _printable(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [_printable(item, depth - 1) for item in value]
    try:
        return from_json(to_json(value, inf_nan_mode="null")) if depth else f"<{type(value).__name__}>"
    except Exception:  # as in `dump_anything`
        return f"<{type(value).__name__}>"
