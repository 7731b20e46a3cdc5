"""The account at the end: whether three independent sources agree.

needed      the calls in the stored conversations
executed    the calls that the witness recorded: they were really made, and paid for
finished    the calls that had finished when the process was killed, by the events
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from examples.quickstart.watch import Kill, TaskWatch
from examples.quickstart.witness import MODEL_CALL, Execution

__all__ = ["Account", "Kind", "settle"]


@dataclass(frozen=True)
class Kind:
    """The calls of one kind, counted."""

    name: str
    needed: int
    executed: int
    cut_off: int
    """Calls that the kill interrupted, and that were made again."""
    repeated: int
    """Calls that had finished, and were made again nevertheless."""

    @property
    def adds_up(self) -> bool:
        """Whether only interrupted calls were made again."""
        return self.executed == self.needed + self.cut_off and self.repeated == 0


@dataclass(frozen=True)
class Account:
    """The kinds of calls, and the promises, each with whether it was kept."""

    kinds: Sequence[Kind]
    promises: Sequence[tuple[str, bool]]


def settle(
    tasks: Mapping[str, TaskWatch],
    conversations: Collection[Sequence[Mapping[str, Any]]],
    executions: Sequence[Execution],
    kill: Kill | None,
    stopped: tuple[int, int],
) -> Account:
    """The account of `tasks` (by id). `stopped`: the supervisor's exit code, and how many processes it left behind."""
    roles = Counter(message["role"] for conversation in conversations for message in conversation)
    killed = kill.process if kill else ""
    model_calls = [one for one in executions if one.call == MODEL_CALL]
    tool_calls = [one for one in executions if one.call != MODEL_CALL]
    kinds = (
        _kind("model calls", model_calls, tasks, killed, needed=roles["assistant"]),
        _kind("tool calls", tool_calls, tasks, killed, needed=roles["tool"]),
    )
    completed = sum(task.ending == "run_completed" for task in tasks.values())
    exitcode, left = stopped
    promises = (
        (f"{completed} of {len(tasks)} tasks are completed", completed == len(tasks)),
        _continued(tasks, kill),
        ("no finished model call or tool call was made again", all(kind.adds_up for kind in kinds)),
        (f"the system stopped gracefully: exit code {exitcode}, {left} processes left", stopped == (0, 0)),
    )
    return Account(kinds, promises)


def _continued(tasks: Mapping[str, TaskWatch], kill: Kill | None) -> tuple[str, bool]:
    if kill is None:
        return "a process was killed in the middle of its tasks", False
    moved = [taken.milliseconds for task_id in kill.held if (taken := tasks[task_id].take_over)]
    latest = max(moved, default=0.0)
    story = f"{len(moved)} of the {len(kill.held)} tasks of {kill.process} continued elsewhere"
    return f"{story}, the last {latest:.0f} ms after the kill", len(moved) == len(kill.held) and latest < 1000


def _kind(name: str, executions: Sequence[Execution], tasks: Mapping[str, TaskWatch], killed: str, needed: int) -> Kind:
    again = {one.identity for one in executions if one.process != killed}
    done_there = [one for one in executions if one.process == killed]
    finished_twice = [one for one in done_there if tasks[one.task_id].finished[one.turn, one.call] > 1]
    cut_off = [one for one in done_there if one.identity in again and one not in finished_twice]
    return Kind(name, needed, len(executions), len(cut_off), len(finished_twice))
