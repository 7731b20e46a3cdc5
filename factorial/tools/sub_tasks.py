"""What the model of a parent reads of its children: one block for each, in the order of spawning. Pure."""

from collections.abc import Iterable
from html import escape
from typing import Any

from factorial._core.json import dump_anything
from factorial._core.text import printable_text

__all__ = ["sub_task_results"]


def sub_task_results(ends: Iterable[tuple[str, Any]]) -> str:
    """The ends of children as text. Each is a task id with the task's output, or with an exception that says why the
    task has none.

    Text is shown as it is, any other output as JSON; `<`, `>` and `&` in it are escaped.
    """
    blocks = [_block(task_id, end) for task_id, end in ends]
    return "\n".join(["<sub_task_results>", *blocks, "</sub_task_results>"])


def _block(task_id: str, end: Any) -> str:
    failed = isinstance(end, BaseException)
    text = str(end) if failed or isinstance(end, str) else dump_anything(end).decode()
    tag = "sub_task_error" if failed else "sub_task_result"
    return f'<{tag} sub_task_id="{task_id}"> {escape(printable_text(text), quote=False)} </{tag}>'
