"""Reads what a parent's model is shown of its children."""

import re
from html import unescape
from typing import NamedTuple

__all__ = ["End", "ends", "outputs"]

_BLOCK = re.compile(r'<sub_task_(result|error) sub_task_id="([^"]*)"> (.*?) </sub_task_\1>', re.DOTALL)


class End(NamedTuple):
    """One block: the child, and its output or error."""

    task_id: str
    kind: str
    text: str


def ends(content: str) -> list[End]:
    """The blocks in the content of a tool message, in their order."""
    _, opened, rest = content.partition("<sub_task_results>\n")
    listing, closed, after = rest.rpartition("</sub_task_results>")
    assert opened and closed and not after, content
    assert _BLOCK.sub("", listing).strip() == "", content
    return [End(task_id, kind, unescape(text)) for kind, task_id, text in _BLOCK.findall(listing)]


def outputs(content: str) -> list[str]:
    """The texts of the blocks."""
    return [end.text for end in ends(content)]
