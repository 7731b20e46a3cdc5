"""Reads docstrings in Google, NumPy and Sphinx style: the description of a function and of its parameters.

The description is the text outside of sections. Sections such as "Returns" are for programmers, not for the model.
"""

import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["read_docstring"]

_PARAMETERS = frozenset({"args", "arguments", "parameters", "params", "keyword args", "other parameters"})
_SECTIONS = _PARAMETERS | {
    "returns", "return", "yields", "yield", "raises", "examples", "example", "notes", "note", "see also",
    "warnings", "warning", "references", "attributes", "todo",
}  # fmt: skip

_GOOGLE_ENTRY = re.compile(r"\*{0,2}(\w+)\s*(?:\(.*?\))?\s*:\s*(.*)")
_NUMPY_ENTRY = re.compile(r"\*{0,2}(\w+(?:\s*,\s*\w+)*)\s*(?::.*)?")
_SPHINX_FIELD = re.compile(r":(\w+)([^:]*):\s*(.*)")


class _Section(NamedTuple):
    style: str
    has_parameters: bool
    start: int
    """The index of the first line of its body."""


def read_docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The description of `function`, and the descriptions of its parameters by name."""
    lines = inspect.cleandoc(getattr(function, "__doc__", None) or "").splitlines()
    description: list[str] = []
    parameters: dict[str, str] = {}
    position = 0
    while position < len(lines):
        section = _section_at(lines, position)
        if section is None:
            description.append(lines[position])
            position += 1
            continue
        position = _end_of(section, lines)
        if section.has_parameters:
            parameters |= _READERS[section.style](lines[section.start : position])
    return "\n".join(description).strip(), parameters


def _section_at(lines: list[str], position: int) -> _Section | None:
    """The section that the line at `position` begins, or None."""
    line = lines[position].rstrip()
    if head := _SPHINX_FIELD.match(line):
        return _Section("sphinx", head[1] in ("param", "parameter", "arg", "argument"), position)
    name = line.rstrip(":").lower()
    if name not in _SECTIONS:
        return None
    if position + 1 < len(lines) and re.fullmatch(r"-{3,}\s*", lines[position + 1]):
        return _Section("numpy", name in _PARAMETERS, position + 2)
    return _Section("google", name in _PARAMETERS, position + 1) if line.endswith(":") else None


def _end_of(section: _Section, lines: list[str]) -> int:
    """The index of the line after the section. Only in NumPy style may the body be unindented."""
    first = section.start + 1 if section.style == "sphinx" else section.start
    for position in range(first, len(lines)):
        at_margin = bool(lines[position].strip()) and not _indent(lines[position])
        if (at_margin and section.style != "numpy") or _section_at(lines, position):
            return position
    return max(first, len(lines))


def _read_google(block: list[str]) -> dict[str, str]:
    """Entries of the form `name (type): text`. Lines with more indentation continue the text."""
    indent = min((_indent(line) for line in block if line.strip()), default=0)
    found: dict[str, list[str]] = {}
    name = ""
    for line in block:
        entry = _GOOGLE_ENTRY.match(line.strip()) if _indent(line) == indent else None
        if entry:
            name = entry[1]
            found[name] = [entry[2]]
        elif name:
            found[name].append(line.strip())
    return _joined(found)


def _read_numpy(block: list[str]) -> dict[str, str]:
    """Entries of the form `name : type`, unindented, with the indented text below."""
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in block:
        if line.strip() and not _indent(line):
            entry = _NUMPY_ENTRY.fullmatch(line.strip())
            names = [name.strip() for name in entry[1].split(",")] if entry else []
            found |= {name: [] for name in names}
        else:
            for name in names:
                found[name].append(line.strip())
    return _joined(found)


def _read_sphinx(block: list[str]) -> dict[str, str]:
    """One entry of the form `:param type name: text`. The following lines continue the text."""
    head = _SPHINX_FIELD.match(block[0])
    if head is None or not head[2].strip():
        return {}
    return _joined({head[2].split()[-1]: [head[3], *(line.strip() for line in block[1:])]})


_READERS: dict[str, Callable[[list[str]], dict[str, str]]] = {
    "google": _read_google,
    "numpy": _read_numpy,
    "sphinx": _read_sphinx,
}


def _joined(found: dict[str, list[str]]) -> dict[str, str]:
    return {name: " ".join(text for text in texts if text) for name, texts in found.items() if any(texts)}


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
