"""The pydantic base class for users' models, and small functions that nfactorial 0.1.x had here.

from factorial.utils import BaseModel
"""

import re
from typing import Any

from pydantic import BaseModel

from factorial._core.json import dump_anything, load_json

__all__ = ["BaseModel", "decode", "is_valid_task_id", "serialize_data", "to_snake_case"]

_TASK_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_WORD_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def is_valid_task_id(task_id: object) -> bool:
    """Whether `task_id` can be the id of a task: 1 to 128 letters, digits, '-', '_', '.' or ':'."""
    return isinstance(task_id, str) and _TASK_ID.fullmatch(task_id) is not None


def to_snake_case(name: str) -> str:
    """`WeatherAgent` as `weather_agent`: the default name of an agent."""
    return _WORD_BOUNDARY.sub("_", name).lower()


def serialize_data(data: Any) -> Any:
    """`data` as plain JSON data, for the `data` of events. What JSON cannot hold becomes text."""
    return load_json(dump_anything(data))


def decode(data: bytes | str) -> str:
    """`data` as text: what a Redis client returns, with or without `decode_responses`."""
    return data.decode() if isinstance(data, bytes) else data
