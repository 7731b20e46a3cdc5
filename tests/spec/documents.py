"""The documents that specify Factorial, and their snippets as they are written there.

The documents are in `documents/`: five pages of the documentation of nfactorial, unchanged. `PROMISES.md` lists what
they promise. Three pages are Markdown, and their snippets stand between fences. Of the other two only the text is left:
a snippet is known by its first and its last line there, and its indentation is restored from the syntax (`reindent`).
"""

import ast
import asyncio
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "ROOT", "Example", "Snippet", "execute", "fences", "looks_like_code", "places", "source", "text",
]  # fmt: skip

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = Path(__file__).with_name("documents")


def text(document: str) -> str:
    """The document of this file name."""
    return (DOCUMENTS / document).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Example:
    """Where something stands in a document.

    `fence`: the n-th of its fenced blocks, from 1. Or, where there are no fences: the `first` line, and the `last` one,
    which is the `nth` that reads so. The examples of a document are listed in its order.
    """

    document: str
    fence: int = 0
    first: str = ""
    last: str = ""
    nth: int = 1


@dataclass(frozen=True)
class Snippet(Example):
    """A snippet of Python, and what is done to it before it runs."""

    slips: Sequence[tuple[str, str]] = ()
    """What was evidently meant: each left side, which occurs once, is replaced by the right one."""
    levels: Mapping[str, int] = field(default_factory=dict)
    """Lines whose indentation does not follow from the syntax."""


def fences(document: str) -> list[tuple[str, str]]:
    """The document's fenced blocks: language and text."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text(document), re.MULTILINE | re.DOTALL)


def places(document: str, examples: Sequence[Example]) -> list[tuple[int, int]]:
    """The first and the last line number, from 0, of each example of a document without fences."""
    lines = [line.strip() for line in text(document).splitlines()]
    found, here = [], 0
    for example in examples:
        first = last = lines.index(example.first, here)
        for _ in range(example.nth):
            last = lines.index(example.last, last + 1)
        found.append((first, last))
        here = last + 1
    return found


def source(table: Mapping[str, Example], name: str) -> str:
    """The example of this name as its document has it, with a snippet's slips corrected. `table`: the document's."""
    example = table[name]
    if example.fence:
        written = fences(example.document)[example.fence - 1][1]
    else:
        first, last = places(example.document, list(table.values()))[list(table).index(name)]
        lines = text(example.document).splitlines()[first : last + 1]
        written = "".join(f"{line.strip()}\n" for line in lines)
    if not isinstance(example, Snippet):
        return written
    for slip, meant in example.slips:
        assert written.count(slip) == 1, f"{slip!r} is there {written.count(slip)} times"
        written = written.replace(slip, meant)
    return written if example.fence else reindent(written, example.levels)


def reindent(written: str, levels: Mapping[str, int]) -> str:
    """Python without its indentation, with it.

    A line that ends with ':' opens a block. `return`, or a bare '...', ends the one it is in; `except`, `finally` and
    `else` belong to the last block of their kind. `levels` has the rest.
    """
    lines: list[str] = []
    opened: list[tuple[str, int]] = []
    level = depth = 0
    over = False
    for line in written.splitlines():
        statement = re.sub(r"\s*#.*", "", _without_strings(line)).strip()
        word = re.match(r"\w*", statement)[0]  # type: ignore[index]  # it matches anything
        if depth == 0 and line:
            if line in levels:
                level = levels[line]
            elif word in _GOES_WITH:
                while opened[-1][0] not in _GOES_WITH[word]:
                    opened.pop()
                level = opened.pop()[1]
            elif over:
                level -= 1
            over = word in ("return", "raise", "pass") or statement == "..."
        inner = depth - (statement[:1] in (")", "]", "}") and depth > 0)
        lines.append(f"{'    ' * (level + inner)}{line}" if line else "")
        depth += sum(map(statement.count, "([{")) - sum(map(statement.count, ")]}"))
        if depth == 0 and statement.endswith(":"):
            opened.append((word, level))
            level += 1
    return "\n".join(lines) + "\n"


_GOES_WITH = {"except": ("try",), "finally": ("try", "except"), "else": ("if", "for", "while", "try"), "elif": ("if",)}


def _without_strings(line: str) -> str:
    return re.sub(r"\"[^\"]*\"|'[^']*'", '""', line)


def looks_like_code(line: str) -> bool:
    """Whether a line of a document without fences would rather be code than prose."""
    return bool(re.match(r"@|from \w+ import|import |def |async |class |await |return |\w+\(|[\w.]+ = |[][{}()]", line))


async def execute(code: str, names: dict[str, Any], name: str = "snippet") -> dict[str, Any]:
    """Run a snippet with these names in its reach, and give them with those that it has made.

    `await` may stand at the top, as in a notebook. A snippet that calls `asyncio.run` itself has a thread to do it in.
    """
    names.setdefault("__name__", name)
    compiled = compile(code, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if compiled.co_flags & inspect.CO_COROUTINE:
        await eval(compiled, names)
    else:
        run: Callable[..., Any] = exec
        await asyncio.to_thread(run, compiled, names)
    return names
