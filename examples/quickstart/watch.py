"""What the demo knows of its tasks. All of it comes from the events, as any subscriber gets them."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from examples.quickstart.witness import MODEL_CALL

__all__ = ["Kill", "TakeOver", "TaskWatch", "victim"]

_MIDDLE = 2
"""The number of the turn in which to kill, from 0."""


@dataclass(frozen=True)
class Kill:
    """The kill: the process, the time, and the ids of the tasks that the process held."""

    process: str
    at: float
    held: frozenset[str]


@dataclass(frozen=True)
class TakeOver:
    """How a task continued after the kill."""

    process: str
    turn: int
    recalled: tuple[str, ...]
    """The calls of that turn that had finished before, and were recalled from the journal: the name of each."""
    milliseconds: float
    """The time between the kill and the first event of the other process."""


@dataclass
class TaskWatch:
    """What the events say of one task."""

    name: str
    question: str
    process: str = ""
    turn: int = 0
    output: str | None = None
    ending: str = ""
    in_flight: set[str] = field(default_factory=set)
    """Calls that have started and not finished: MODEL_CALL, and ids of tool calls."""
    finished: Counter[tuple[int, str]] = field(default_factory=Counter)
    """How many times each call, by its turn, has finished. Each should finish once."""
    names: dict[str, str] = field(default_factory=dict)
    """The name of what each call calls."""
    take_over: TakeOver | None = None

    def follow(self, event: Mapping[str, Any], kill: Kill | None) -> None:
        """Read an event."""
        event_type, about = event["event_type"], event.get("metadata") or {}
        if event_type == "agent_output":
            self.output = str(event["data"])
        elif event_type in ("run_completed", "run_failed", "run_cancelled"):
            self.ending = event_type
        if not event_type.startswith("progress_update_"):
            return
        if kill is not None and self.process == kill.process != about["process"]:
            self._taken_over(event, kill.at)
        self.process, self.turn = about["process"], about["turn"]
        if call := self._called(event):
            if event_type.endswith("_started"):
                self.in_flight.add(call)
            else:
                self.in_flight.discard(call)
                self.finished[self.turn, call] += event_type.endswith("_completed")

    @property
    def is_mid_turn(self) -> bool:
        """Whether the model has answered in this turn, one tool call has finished, and another one has not."""
        in_middle = self.turn == _MIDDLE and len([call for turn, call in self.finished if turn == self.turn]) > 1
        return (in_middle or self.turn > _MIDDLE) and bool(self.in_flight - {MODEL_CALL})

    def _called(self, event: Mapping[str, Any]) -> str | None:
        """The id of the call that a progress event is about."""
        if "_completion_" in event["event_type"]:
            self.names[MODEL_CALL] = MODEL_CALL
            return MODEL_CALL
        if "_tool_action_" in event["event_type"]:
            tool_call = event["data"]["args"][0]
            self.names[tool_call["id"]] = tool_call["function"]["name"]
            return str(tool_call["id"])
        return None

    def _taken_over(self, event: Mapping[str, Any], killed_at: float) -> None:
        about = event["metadata"]
        recalled = tuple(self.names[call] for turn, call in self.finished if turn == about["turn"])
        moment = datetime.fromisoformat(event["timestamp"]).timestamp()
        self.take_over = TakeOver(about["process"], about["turn"], recalled, (moment - killed_at) * 1000)
        self.in_flight.clear()


def victim(tasks: Collection[TaskWatch]) -> str | None:
    """The process to kill: the one with the most tasks, once one of them is in the middle of a turn."""
    busy = Counter(task.process for task in tasks if task.process and not task.ending)
    for process, count in busy.most_common(1):
        if count >= 2 and any(task.process == process and task.is_mid_turn for task in tasks):
            return process
    return None
