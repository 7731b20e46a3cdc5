"""The doctor's rules: which runs violate them. Pure: the runs are written by hand.

How the doctor reads runs from a server is tested in tests/redis/test_doctor.py.
"""

from typing import Any

import pytest

from factorial.mailbox.doctor.aggregates import about_wake
from factorial.mailbox.doctor.invariants import Invariant
from factorial.mailbox.doctor.rules import about_run
from factorial.mailbox.doctor.stored import Run

HELD = Run("t1", "processing", "a", "o", holder="p", nonce="n", epoch=1, places=(("held", "p"),))


def run(status: str, *places: tuple[str, str], **about: Any) -> Run:
    """A run in these places, whose last commit is what led there."""
    action = {"completed": "complete", "failed": "fail", "backoff": "backoff", "queued": "release"}.get(status, "park")
    known: dict[str, Any] = {"nonce": "n", "epoch": 1, "seq": 1, "last_commit": f"1:n:0:{action}:0"}
    return Run("t1", status, "a", "o", places=places, **known | about)


def broken(run: Run) -> set[Invariant]:
    return {finding.invariant for finding in about_run(run)}


GOOD = {
    "new": Run("t1", "queued", "a", "o", places=(("ready", "a"),)),
    "throttled": Run("t1", "queued", "a", "o", places=(("throttled", "a:o"),)),
    "a suspect in line": run("queued", ("suspects", "a"), crashes=2, recoveries=2),
    "held": HELD,
    "in backoff": run("backoff", ("due", "a")),
    "reclaimed, in backoff": run("backoff", ("due", "a"), epoch=2, recoveries=2),
    "parked": run("pending_tool_results", ("parked", "a"), awaits={"tool:c": "?0", "open": "1"}),
    "parked with a deadline": run(
        "pending_child_tasks", ("parked", "a"), ("due", "a"), awaits={"child:t2": "?9", "child:t3": "!", "open": "1"}
    ),
    "due for what has come": run(
        "pending_tool_results", ("parked", "a"), ("due", "a"), awaits={"tool:c": "!", "tool:d": "?0", "open": "1"}
    ),
    "completed": run(
        "completed", ("ended", "a:completed"), belongings=("conversation", "fields"), reported_ends=("completed",)
    ),
    "failed": run("failed", ("ended", "a:failed")),
    "given up": run(
        "failed", ("ended", "a:failed"), epoch=4, last_commit="1:n:0:continue:0", error="crash_loop: 3 ..."
    ),
    "cancelled in the queue": Run("t1", "cancelled", "a", "o", places=(("ended", "a:cancelled"), ("ready", "a"))),
    "a child": run("backoff", ("due", "a"), parent="t0", parent_status="pending_child_tasks", is_listed_by_parent=True),
    "an orphan": run("backoff", ("due", "a"), parent="t0", parent_status="cancelled"),
    "gone, an entry left in the queue": Run("t1", places=(("ready", "a"),)),
}


@pytest.mark.parametrize("what", GOOD)
def test_nothing_is_wrong(what: str) -> None:
    assert list(about_run(GOOD[what])) == []


BAD = {
    "a suspect among the others": (run("queued", ("ready", "a"), crashes=2, recoveries=2), Invariant.PLACE),
    "throttled for another owner": (run("queued", ("throttled", "a:x")), Invariant.PLACE),
    "ready and throttled": (run("queued", ("ready", "a"), ("throttled", "a:o")), Invariant.PLACE),
    "completed, and still in line": (run("completed", ("ended", "a:completed"), ("ready", "a")), Invariant.PLACE),
    "held without a process": (run("processing", ("held", "")), Invariant.PLACE),
    "completed by nobody": (Run("t1", "completed", "a", "o", places=(("ended", "a:completed"),)), Invariant.COMMIT),
    "completed after it was reclaimed": (run("completed", ("ended", "a:completed"), epoch=2), Invariant.COMMIT),
    "failed by a commit that said otherwise": (
        run("failed", ("ended", "a:failed"), last_commit="1:n:0:continue:0"), Invariant.COMMIT,
    ),
    "a commit that cannot be read": (run("backoff", ("due", "a"), last_commit="1:n:0"), Invariant.COMMIT),
    "published as ended before": (run("backoff", ("due", "a"), reported_ends=("failed",)), Invariant.END_EVENT),
    "never published": (run("completed", ("ended", "a:completed"), reported_ends=()), Invariant.END_EVENT),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_of_one_invariant(what: str) -> None:
    made_up, invariant = BAD[what]
    assert broken(made_up) == {invariant}


def test_every_finding_names_its_run() -> None:
    for made_up, _ in BAD.values():
        assert {finding.subject for finding in about_run(made_up)} == {"run t1"}


def test_suspects_wait_without_a_token_once_it_was_passed_on() -> None:
    assert list(about_wake("a", 0, 1, has_token=False, passed=1)) == []
    assert len(list(about_wake("a", 0, 1, has_token=False, passed=0))) == 1
    assert len(list(about_wake("a", 1, 0, has_token=False, passed=1))) == 1
