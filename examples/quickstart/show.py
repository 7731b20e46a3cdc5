"""What the demo prints: a line for each thing that happens, and the account at the end."""

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
    """A line across, with a title."""
    print(f"\n── {title} ".ljust(_WIDTH, "─") if title else "─" * _WIDTH)


class Screen:
    """Prints lines with the seconds since its beginning."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def line(self, who: str, what: str, task: str = "", turn: str = "") -> None:
        """Print what `who` did, aligned."""
        print(f"{time.monotonic() - self._begun:6.2f} s  {who:<21} {task:<4} {turn:<6} {what}"[:_WIDTH], flush=True)

    def supervisor(self, news: str) -> None:
        """Print what the supervisor has to say."""
        self.line("supervisor", news)

    def event(self, event: Mapping[str, Any], task: TaskWatch) -> None:
        """Print an event, if it says that something is finished or has gone wrong."""
        what = _told(event)
        about = event.get("metadata") or {}
        if what is not None:
            turn = f"turn {about['turn'] + 1}" if "turn" in about else ""
            self.line(about.get("process", "mailbox"), what, task.name, turn)

    def take_over(self, task: TaskWatch) -> None:
        """Print how a task goes on after the kill."""
        if taken := task.take_over:
            known = f"; from the journal: {', '.join(taken.recalled)}" if taken.recalled else ""
            self.line(
                taken.process, f"» goes on here {taken.milliseconds:.0f} ms after the kill{known}", task.name,
                f"turn {taken.turn + 1}",
            )  # fmt: skip


def _told(event: Mapping[str, Any]) -> str | None:
    data = event.get("data") or {}
    match event["event_type"]:
        case "progress_update_completion_completed":
            calls = Counter(data["result"]["tool_calls"])
            wanted = " and ".join(f"{count} x {name}" if count > 1 else name for name, count in calls.items())
            return f"the model asks for {wanted}" if wanted else "the model answers"
        case "progress_update_tool_action_completed":
            function = data["args"][0]["function"]
            count = len(str(data["result"]).splitlines())
            return f"{function['name']}({_arguments(function['arguments'])}) → {count} line{'s' * (count != 1)}"
        case "task_reclaimed":
            return f"taken back from {data['process']}"
        case "run_completed" | "run_failed" | "run_cancelled" as ending:
            return f"{ending}{': ' + event['error'] if event.get('error') else ''}"
        case failed if failed.endswith("_failed"):
            return f"{failed}: {event.get('error')}"
    return None


def _arguments(text: str) -> str:
    """The arguments as one would write them in Python, if the model has written them well."""
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
    """Print what was needed, what was executed, and each promise with whether it was kept."""
    rule("The account")
    titles = ("needed", "really executed", "cut off by the kill", "finished, yet repeated")
    print(f"{'':<12}" + "".join(f"{title:>24}" for title in titles))
    for kind in account.kinds:
        numbers = (kind.needed, kind.executed, kind.cut_off, kind.repeated)
        print(f"{kind.name:<12}" + "".join(f"{number:>24}" for number in numbers))
    print()
    for promise, is_kept in account.promises:
        print(f"{'kept  ' if is_kept else 'BROKEN'}  {promise}")
