"""What the demo prints: a line for each event of interest, and the account at the end."""

import json
import textwrap
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from examples.quickstart.account import Account
from examples.quickstart.watch import TaskWatch

__all__ = ["Screen", "rule", "show_account", "show_answers"]

_WIDTH = 118


def rule(title: str = "") -> None:
    """A horizontal line with a title."""
    print(f"\n── {title} ".ljust(_WIDTH, "─") if title else "─" * _WIDTH)


class Screen:
    """Prints lines with the seconds since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def line(self, who: str, what: str, task: str = "", turn: str = "") -> None:
        """Print what `who` did, aligned."""
        print(f"{time.monotonic() - self._started:6.2f} s  {who:<21} {task:<4} {turn:<6} {what}"[:_WIDTH], flush=True)

    def supervisor(self, message: str) -> None:
        """Print a log message of the supervisor."""
        self.line("supervisor", message)

    def event(self, event: Mapping[str, Any], task: TaskWatch) -> None:
        """Print an event if it says that something finished or failed."""
        what = _description(event)
        about = event.get("metadata") or {}
        if what is not None:
            turn = f"turn {about['turn'] + 1}" if "turn" in about else ""
            self.line(about.get("process", "mailbox"), what, task.name, turn)

    def take_over(self, task: TaskWatch) -> None:
        """Print where and when a task continued after the kill."""
        if taken := task.take_over:
            known = f"; from the journal: {', '.join(taken.recalled)}" if taken.recalled else ""
            self.line(
                taken.process, f"» continues here {taken.milliseconds:.0f} ms after the kill{known}", task.name,
                f"turn {taken.turn + 1}",
            )  # fmt: skip


def _description(event: Mapping[str, Any]) -> str | None:
    data = event.get("data") or {}
    match event["event_type"]:
        case "progress_update_completion_completed":
            calls = Counter(data["result"]["tool_calls"])
            wanted = " and ".join(f"{count} x {name}" if count > 1 else name for name, count in calls.items())
            return f"the model asks for {wanted}" if wanted else "the model answers"
        case "progress_update_tool_action_completed":
            function = data["args"][0]["function"]
            count = len(data["result"]["output_str"].splitlines())
            return f"{function['name']}({_arguments(function['arguments'])}) → {count} line{'s' * (count != 1)}"
        case "task_reclaimed":
            return f"reclaimed from {data['process']}"
        case "run_completed" | "run_failed" | "run_cancelled" as ending:
            return f"{ending}{': ' + event['error'] if event.get('error') else ''}"
        case failed if failed.endswith("_failed"):
            return f"{failed}: {event.get('error')}"
    return None


def _arguments(text: str) -> str:
    """The arguments as in a Python call, or the text as it is if it is not valid JSON."""
    try:
        return ", ".join(f"{name}={value!r}" for name, value in json.loads(text).items())
    except (ValueError, AttributeError):
        return text


def show_answers(tasks: Sequence[TaskWatch]) -> None:
    """Print each question with its answer."""
    rule("The answers")
    for task in tasks:
        answer = " ".join((task.output or task.ending or "none").split())
        print(f"{task.name}  {task.question}")
        print(textwrap.fill(answer, _WIDTH, initial_indent="   ", subsequent_indent="   "))


def show_account(account: Account) -> None:
    """Print the calls that were needed and made, and each promise with whether it was kept."""
    rule("The account")
    titles = ("needed", "made", "interrupted by the kill", "finished, yet repeated")
    print(f"{'':<12}" + "".join(f"{title:>24}" for title in titles))
    for kind in account.kinds:
        numbers = (kind.needed, kind.executed, kind.cut_off, kind.repeated)
        print(f"{kind.name:<12}" + "".join(f"{number:>24}" for number in numbers))
    print()
    for promise, is_kept in account.promises:
        print(f"{'kept  ' if is_kept else 'BROKEN'}  {promise}")
