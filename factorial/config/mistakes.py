"""Pydantic's validation errors as sentences that name the setting and say what to write."""

import difflib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from pydantic import ValidationError

__all__ = ["explain", "hint"]


def explain(cls: type, invalid: ValidationError) -> str:
    """For each mistake in the settings of `cls`: its place, what is wrong, and what is accepted there."""
    return "; ".join(
        _complaint(cls, error["loc"], error["type"], error["msg"])
        for error in invalid.errors(include_url=False, include_context=False, include_input=False)
    )


def hint(name: str, known: Sequence[str]) -> str:
    """The known name that is nearest to `name`, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known) or 'none'}"


def _complaint(cls: type, location: tuple[int | str, ...], kind: str, message: str) -> str:
    entry, key = _as_written(location)
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{entry}unknown key {key!r}; {_where_it_belongs(cls, location)}"
    if kind in ("missing", "missing_argument"):
        return f"{entry}{key!r} is missing"
    if kind == "tuple_type" and key in ("group", "runner"):
        return f"write [[{key}]], with double brackets: there may be several"
    is_list = kind in ("tuple_type", "sequence_str", "is_instance_of")
    if is_list or (kind == "string_type" and isinstance(location[-1], int)):
        return f'{_table(location)}: give a list of strings, such as ["...", "..."]'
    if kind == "dataclass_type":
        table = _table(location)
        return f"{entry}write it as a table, {f'[{table}]' if key else f'[[{table}]]'}"
    if kind == "value_error":
        return entry + (f"{key}." if key else "") + message.removeprefix("Value error, ")
    return f"{entry}{key!r}: {message[:1].lower()}{message[1:]}"


def _as_written(location: tuple[int | str, ...]) -> tuple[str, str]:
    """Which entry of a list of tables is meant, such as `[[runner]] 2: `, and the key within that entry."""
    if len(location) > 1 and isinstance(location[1], int):
        return f"[[{location[0]}]] {location[1] + 1}: ", ".".join(str(part) for part in location[2:])
    return "", ".".join(str(part) for part in location)


def _table(location: Sequence[int | str]) -> str:
    """The table's name in the file, without brackets."""
    return ".".join(part for part in location if isinstance(part, str))


def _where_it_belongs(cls: type, location: tuple[int | str, ...]) -> str:
    """What to do about a key that is not known at its place."""
    *table, key = location
    here = _tables_and_keys(cls, table)
    for name, kind in here.items():
        if is_dataclass(kind) and str(key) in (f.name for f in fields(kind)):
            return f"it belongs in [{_table([*table, name])}]"
    return hint(str(key), list(here))


def _tables_and_keys(cls: Any, location: Sequence[int | str]) -> dict[str, Any]:
    """The fields of the settings class that `location` leads to, with their types."""
    for part in location:
        cls = cls.__args__[0] if isinstance(part, int) else get_type_hints(cls)[part]
    return {name: kind for name, kind in get_type_hints(cls).items() if name in cls.__dataclass_fields__}
