"""The storm's judge is not blind: each promise that is broken is told of.

Nothing real: a cohort of one task, and what would be stored, told and witnessed of it, made up here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.chaos.storm_check import RECORDED_WITHIN, Cohort, Figures, Hit, Job, check
from tests.chaos.storm_work import Line

FIRST, SECOND = 101, 102  # two processes, by pid


@dataclass
class Case:
    """A task of one turn and one tool, which was taken back once, and all that is known of it."""

    data: dict[str, Any] | None
    events: list[dict[str, Any]]
    lines: list[Line]
    saw: list[str] = field(default_factory=list)
    hits: dict[int, list[Hit]] = field(default_factory=lambda: {FIRST: [Hit("killed", 12.0, 12.0)]})

    def broken(self) -> dict[str, int]:
        """What `check` has to say."""
        for number, event in enumerate(self.events):
            event.setdefault("id", f"{13_000 + number}-0")  # after all that the witness has seen
        figures = Figures()
        cohort = Cohort("0", ["owner"], {"0.0": Job("0.0", "tool", "owner", "t")}, self.lines)
        cohort.subscriber_saw = self.saw or [event["id"] for event in self.events]
        check(figures, cohort, {"t": self.data}, {"owner": self.events}, self.hits, {"p1": FIRST})
        return dict(figures.broken)


def completed(step: str, turn: int, pickups: int) -> dict[str, Any]:
    data = {"args": [{"id": "call_0_0"}]}
    return event(f"progress_update_{step}_completed", turn=turn, data=data, metadata={"pickups": pickups})


def event(name: str, **more: Any) -> dict[str, Any]:
    return {"event_type": name, "task_id": "t", "metadata": None, **more}


@pytest.fixture
def case() -> Case:
    """All is well: the process was killed in the tool, which was executed again elsewhere."""
    roles = ["user", "assistant", "tool", "assistant"]
    begun = 12.0 - RECORDED_WITHIN - 0.3
    payload = {"label": "0.0", "query": "tool", "output": "q0", "messages": [{"role": role} for role in roles]}
    return Case(
        data={
            "id": "t", "status": "completed", "parent_id": None, "payload": payload,
            "process": None, "awaits": [], "error": None,
        },
        events=[
            event("run_enqueued"),
            event("run_started"),
            completed("completion", 0, 1),
            event("task_reclaimed", data={"process": "p1", "cause": "killed"}),
            completed("tool_action", 0, 2),
            completed("run_turn", 0, 2),
            completed("completion", 1, 2),
            completed("run_turn", 1, 2),
            event("agent_output"),
            event("run_completed"),
        ],
        lines=[
            Line(begun, "begin", "0.0", "model", 0, 1, FIRST),
            Line(begun + 0.2, "end", "0.0", "model", 0, 1, FIRST),
            Line(11.8, "begin", "0.0", "quick", 0, 1, FIRST),
            Line(12.4, "begin", "0.0", "quick", 0, 1, SECOND),
            Line(12.6, "end", "0.0", "quick", 0, 1, SECOND),
            Line(12.7, "begin", "0.0", "model", 1, 1, SECOND),
            Line(12.9, "end", "0.0", "model", 1, 1, SECOND),
        ],
    )  # fmt: skip


def test_a_step_that_a_kill_cut_off_may_be_executed_again(case: Case) -> None:
    assert case.broken() == {}


def gone(case: Case) -> None:
    case.data = None


def waiting(case: Case) -> None:
    assert case.data is not None
    case.data["status"] = "queued"


def another_answer(case: Case) -> None:
    assert case.data is not None
    case.data["payload"]["output"] = "q1"


def a_message_more(case: Case) -> None:
    assert case.data is not None
    case.data["payload"]["messages"].append({"role": "assistant"})


def a_step_told_again(case: Case) -> None:
    case.events.insert(5, completed("tool_action", 0, 2))


def two_ends(case: Case) -> None:
    case.events.append(event("run_cancelled"))


def a_word_of_a_zombie(case: Case) -> None:
    case.events[4] = completed("tool_action", 0, 1)


def a_recorded_step_again(case: Case) -> None:
    case.lines += [Line(12.3, edge, "0.0", "model", 0, 1, SECOND) for edge in ("begin", "end")]


def a_step_again_that_was_recorded_just_before(case: Case) -> None:
    """It had ended less than `RECORDED_WITHIN` before the kill."""
    case.lines[:2] = [Line(11.3, "begin", "0.0", "model", 0, 1, FIRST), Line(11.5, "end", "0.0", "model", 0, 1, FIRST)]
    case.events[2]["id"] = "11501-0"
    a_recorded_step_again(case)


def no_kill(case: Case) -> None:
    case.hits = {}


def an_event_unseen(case: Case) -> None:
    case.saw = ["13000-0", "13002-0"]


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        (gone, "lost"),
        (waiting, "stuck"),
        (another_answer, "wrong"),
        (a_message_more, "wrong"),
        (a_step_told_again, "committed twice"),
        (two_ends, "committed twice"),
        (a_word_of_a_zombie, "zombies"),
        (a_recorded_step_again, "repeated"),
        (a_step_again_that_was_recorded_just_before, "repeated"),
        (no_kill, "repeated"),
        (an_event_unseen, "missed"),
    ],
)
def test_a_promise_that_was_broken_is_told_of(case: Case, change: Callable[[Case], None], promise: str) -> None:
    change(case)
    assert case.broken() == {promise: 1}
