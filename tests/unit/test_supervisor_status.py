"""How `status` draws supervisors. Pure: the reports are written by hand."""

from typing import Any

import pytest

from factorial.supervisor.status import WIDTH, Subject, draw, size, span


def worker(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": name, "type": "worker", "state": "running", "process": f"{name}-3fa9c2", "pid": 3811, "uptime": 11530.2,
        "restarts": 0, "last_exit": None, "tasks": 12.0, "rss": 190_900_000, "cpu": 13.4, "open_files": 41,
        "children": 0, "lag": 0.0021,
    } | changes  # fmt: skip


def supervisor(name: str, *children: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "id": name, "type": "supervisor", "state": "running", "strategy": "one_for_one", "restarts": 0, "intensity": 5,
        "period": 60.0, "last_exit": None, "children": list(children),
    } | changes  # fmt: skip


def subject(tree: dict[str, Any], age: float = 1.0, is_lost: bool = False, **changes: Any) -> Subject:
    report = {
        "supervisor": "db1-812", "host": "db1", "pid": 812, "version": "0.2.0", "config": "/etc/factorial/system.toml",
        "started_at": 1.7e9, "uptime": 11533.0, "state": "running", "tree": tree,
    }  # fmt: skip
    return Subject(report | changes, age, is_lost)


RESTARTING = {
    "state": "restarting", "restarts": 3, "last_exit": "SIGKILL: its event loop was blocked for 15 s",
    "last_exit_ago": 3.2,
    "pid": None, "uptime": None, "tasks": None, "rss": None, "cpu": None, "open_files": None, "lag": None,
}  # fmt: skip
TREE = supervisor(
    "system",
    supervisor(
        "pipeline",
        supervisor("planner", worker("planner.1"), worker("planner.2", **RESTARTING), restarts=3),
        supervisor("writer", worker("writer.1", state="draining", pid=3814, uptime=65, tasks=1, rss=1.5e9, lag=12.0)),
    ),
    supervisor("weather", worker("weather.1", pid=99, cpu=101.0, open_files=7, last_exit="exit code 1", restarts=1)),
)

PICTURE = """\
  db1-812  running for 3h12m  (pid 812 on db1, factorial 0.2.0, /etc/factorial/system.toml)
! 2 of 4 processes running, 25 tasks in flight
! planner.2 is restarting; its last exit: 3s ago: SIGKILL: its event loop was blocked for 15 s
! writer.1 is draining

  NODE                STATE         PID  UPTIME  RESTARTS     TASKS   RSS   CPU  FILES   LAG  LAST EXIT
  system              running 2/2                0/5 in 60 s                                  -
  ├─ pipeline         running 2/2                0/5 in 60 s                                  -
  │  ├─ planner       running 1/2                3/5 in 60 s                                  -
  │  │  ├─ planner.1  running      3811   3h12m  0               12  182M   13%     41  2 ms  -
! │  │  └─ planner.2  restarting      -       -  3                -     -     -      -     -  3s ago: SIGKILL: its even…
  │  └─ writer        running 0/1                0/5 in 60 s                                  -
! │     └─ writer.1   draining     3814   1m05s  0                1  1.4G   13%     41  12 s  -
  └─ weather          running 1/1                0/5 in 60 s                                  -
     └─ weather.1     running        99   3h12m  1               12  182M  101%      7  2 ms  exit code 1

! db2-99  LOST, last heard of 40s ago  (pid 99 on db2)
  it had 1 of 1 process running, 12 tasks in flight; their tasks go on elsewhere when their leases are over

  QUEUE    READY  SUSPECTS  BACKOFF  HELD
  planner     12         1        3    24
  weather      0         0        0  1200"""


def test_three_runners_in_different_states_a_lost_supervisor_and_the_queues() -> None:
    lost = subject(
        supervisor("system", worker("weather.1")), 40.2, is_lost=True, supervisor="db2-99", host="db2", pid=99
    )
    drawn = draw([subject(TREE), lost], {"weather": (0, 0, 0, 1200), "planner": (12, 1, 3, 24)})
    assert drawn == PICTURE


def test_when_all_is_well_one_line_says_so() -> None:
    drawn = draw([subject(supervisor("system", supervisor("weather", worker("weather.1"), worker("weather.2"))))], {})
    assert drawn.splitlines()[1] == "  all is well: 2 of 2 processes running, 24 tasks in flight"
    assert "!" not in drawn


def test_many_nodes_in_trouble_are_counted_and_the_first_are_named() -> None:
    workers = [worker(f"weather.{number}", state="starting") for number in range(1, 9)]
    lines = draw([subject(supervisor("system", *workers))], {}).splitlines()
    assert lines[2] == "! weather.1 is starting"
    assert lines[7] == "! and 3 more"


def test_no_line_is_wider_than_a_terminal() -> None:
    long = "x" * 200
    tree = supervisor(long, supervisor(long, worker(long, state="ended", last_exit=long)), last_exit=long)
    drawn = draw([subject(tree, config=long), subject(tree, 99, is_lost=True, supervisor=long)], {long: (1, 2, 3, 4)})
    assert max(len(line) for line in drawn.splitlines()) == WIDTH


def test_what_is_not_known_is_a_dash_and_nothing_is_fatal() -> None:
    drawn = draw([Subject({}, 1.0, False), subject({"type": "worker"}), subject({"type": "supervisor"})], {})
    assert "? for -" in drawn
    assert draw([], {}) == ""


def test_text_from_elsewhere_gives_the_terminal_no_orders() -> None:
    drawn = draw([subject(supervisor("system", worker("a.1", last_exit="\x1b[2J\nbad")))], {})
    assert "\x1b" not in drawn
    assert " [2J bad" in drawn


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (0.4, "0s"), (59.9, "59s"), (60, "1m00s"), (3661, "1h01m"), (180_000, "2d02h"), (9e7, "1041d16h")],
)
def test_time_spans(seconds: float | None, shown: str) -> None:
    assert span(seconds) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [(None, "-"), (0, "0B"), (1023, "1023B"), (1024, "1.0K"), (190_900_000, "182M"), (1.5e9, "1.4G"), (3e10, "28G")],
)
def test_sizes(number: float | None, shown: str) -> None:
    assert size(number) == shown
