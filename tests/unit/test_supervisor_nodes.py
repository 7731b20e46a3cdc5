"""Reports of supervisors that are invalid, as they may come from Redis. Pure."""

import math
from typing import Any

import pytest

from factorial.supervisor.operate.status import Subject, draw
from factorial.supervisor.tree.nodes import checked_report

WORKER = {"id": "a.1", "type": "worker", "state": "running", "pid": 7, "uptime": 3.5, "rss": 1000, "tasks": 2}


def report(**worker: Any) -> dict[str, Any]:
    runner = {"id": "a", "type": "supervisor", "state": "running", "children": [WORKER | worker]}
    tree = {"id": "system", "type": "supervisor", "state": "running", "children": [runner]}
    return {"supervisor": "s-1", "host": "h", "pid": 1, "uptime": 9, "state": "running", "tree": tree}


def test_a_good_report_stays_as_it_is() -> None:
    assert checked_report(report()) == report()


@pytest.mark.parametrize(
    "odd",
    [
        {"pid": "seven"}, {"uptime": None}, {"rss": [1]}, {"cpu": math.inf}, {"tasks": {}}, {"id": None}, {"state": 5},
        {"new_in_a_later_release": {"x": 1}}, {"predecessors": "none"}, {"predecessors": [3]}, {"children": 4},
    ],
)  # fmt: skip
def test_invalid_values_are_left_out_and_the_rest_is_drawn(odd: dict[str, Any]) -> None:
    drawn = draw([Subject(checked_report(report(**odd)), 0.0, False)], {})
    assert "system" in drawn


@pytest.mark.parametrize("tree", [None, [], "tree", {}, {"children": [None, 3, "x"]}])
def test_an_invalid_tree_is_drawn_as_far_as_possible(tree: Any) -> None:
    assert draw([Subject(checked_report({"supervisor": "s-1", "tree": tree}), 0.0, False)], {})


def test_a_tree_that_is_too_deep_is_cut() -> None:
    node: dict[str, Any] = dict(WORKER)
    for _ in range(5000):
        node = {"id": "x", "type": "supervisor", "children": [node]}
    assert draw([Subject(checked_report({"supervisor": "s-1", "tree": node}), 0.0, False)], {})


def test_control_characters_do_not_reach_the_terminal() -> None:
    checked = checked_report(report(id="a\x1b]0;owned\x07", last_exit="x\nforged") | {"host": "\x1b[2J"})
    drawn = draw([Subject(checked, 0.0, False)], {})
    assert all(character.isprintable() or character == "\n" for character in drawn)
    assert "\nforged" not in drawn
