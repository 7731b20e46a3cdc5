"""The pydantic base that users extend, and the one way we write JSON.

`from factorial.utils import BaseModel` is a documented import (checklist A07).
"""

from typing import Any

from pydantic import BaseModel
from pydantic_core import from_json, to_json

__all__ = ["BaseModel", "dump_json", "load_json", "shorten"]


def dump_json(value: Any) -> bytes:
    """`value` as compact JSON in UTF-8. Pydantic's types (datetimes, enums, sets, models) are understood.

    Raises `pydantic_core.PydanticSerializationError` for anything JSON cannot hold.
    """
    return to_json(value, inf_nan_mode="null")


def load_json(data: bytes | str) -> Any:
    """The value that `dump_json` wrote."""
    return from_json(data)


def shorten(text: str, limit: int) -> str:
    """`text`, cut to `limit` characters with a note of how many are missing."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit} more characters)"
