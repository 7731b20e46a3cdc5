"""The pydantic base that users extend, and the one way we write JSON.

`from factorial.utils import BaseModel` is a documented import (checklist A07).
"""

import inspect
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel
from pydantic_core import from_json, to_json

__all__ = [
    "BaseModel",
    "can_take",
    "decode",
    "dump_anything",
    "dump_json",
    "is_valid_task_id",
    "iso",
    "listed",
    "load_json",
    "one_line",
    "printable_text",
    "serialize_data",
    "shorten",
    "to_snake_case",
    "with_article",
]

_DEEPEST = 20
_TASK_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_WORD_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def dump_json(value: Any) -> bytes:
    """`value` as compact JSON in UTF-8. Pydantic's types (datetimes, enums, sets, models) are understood.

    Raises `pydantic_core.PydanticSerializationError` for anything JSON cannot hold.
    """
    return to_json(value, inf_nan_mode="null")


def dump_anything(value: Any) -> bytes:
    """`value` as compact JSON, whatever it is: what JSON cannot hold is shown as text. It raises nothing."""
    try:
        return to_json(value, inf_nan_mode="null", serialize_unknown=True)
    except Exception:  # the boundary to the user's objects: undecodable bytes, circles, serialisers that raise
        return to_json(_printable(value, _DEEPEST), inf_nan_mode="null")


def _printable(value: Any, depth: int) -> Any:
    """`value` as plain data that JSON can hold."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return printable_text(value)
    if isinstance(value, bytes | bytearray):
        return value.decode(errors="replace")
    if depth and isinstance(value, dict):
        return {_printable(str(key), 0): _printable(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [_printable(item, depth - 1) for item in value]
    try:
        return from_json(to_json(value, inf_nan_mode="null")) if depth else f"<{type(value).__name__}>"
    except Exception:  # as above
        return f"<{type(value).__name__}>"


def load_json(data: bytes | str) -> Any:
    """The value that `dump_json` wrote."""
    return from_json(data)


def iso(moment: datetime) -> str:
    """`moment` in ISO 8601, in UTC, with milliseconds: `2026-01-02T03:04:05.678Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def printable_text(text: str) -> str:
    """`text`, without what UTF-8 cannot hold: half of a surrogate pair, as in an undecodable file name."""
    return text.encode(errors="replace").decode()


def shorten(text: str, limit: int) -> str:
    """`text`, cut to `limit` characters with a note of how many are missing."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit} more characters)"


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names in one line, for people: the first `most` of them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def one_line(text: str) -> str:
    """`text` on one line, without the characters that would do something to a terminal or a log."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else " " for character in text)


def is_valid_task_id(task_id: object) -> bool:
    """Whether `task_id` can be the id of a task: 1 to 128 letters, digits, '-', '_', '.' or ':'."""
    return isinstance(task_id, str) and _TASK_ID.fullmatch(task_id) is not None


def to_snake_case(name: str) -> str:
    """`WeatherAgent` as `weather_agent`: how an agent is called that was given no name."""
    return _WORD_BOUNDARY.sub("_", name).lower()


def with_article(noun: str) -> str:
    """`a Task`, `an AgentContext`."""
    return f"{'an' if noun[:1] in 'AEIOUaeiou' else 'a'} {noun}"


def can_take(function: object, *arguments: Any, **named: Any) -> bool:
    """Whether `function` can be called so, as far as its signature tells: some builtins have none."""
    if not callable(function):
        return False
    checked: Callable[..., Any] = function
    try:
        signature = inspect.signature(checked)
    except (ValueError, NameError):
        return True
    try:
        signature.bind(*arguments, **named)
    except TypeError:
        return False
    return True


def serialize_data(data: Any) -> Any:
    """`data` as plain JSON data, whatever it is: what JSON cannot hold is shown as text. For the `data` of events."""
    return load_json(dump_anything(data))


def decode(data: bytes | str) -> str:
    """`data` as text: what a Redis client gives, with or without `decode_responses`."""
    return data.decode() if isinstance(data, bytes) else data
