"""How `status` draws supervisors. Pure: the reports are written by hand."""

import re
from pathlib import Path
from typing import Any

import pytest

from factorial.supervisor.operate.status import _WIDTH, Subject, _size, draw, span

COLUMNS = ("ready", "throttled", "suspects", "backoff", "parked", "held")


def counts(*numbers: int) -> dict[str, int]:
    """The tasks of one agent, by place."""
    return dict(zip(COLUMNS, numbers, strict=True))


def worker(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": name, "type": "worker", "state": "running", "process": f"{name}-3fa9c2", "pid": 3811, "uptime": 11530.2,
        "restarts": 0, "last_exit": None, "tasks": 12.0, "rss": 190_900_000, "cpu": 13.4, "open_files": 41,
        "descendants": 0, "lag": 0.0021,
    } | changes  # fmt: skip


def supervisor(name: str, *children: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "id": name, "type": "supervisor", "state": "running", "strategy": "one_for_one", "restarts": 0, "intensity": 5,
        "period": 60.0, "last_exit": None, "children": list(children),
    } | changes  # fmt: skip


def subject(tree: dict[str, Any], age: float = 1.0, is_lost: bool = False, **changes: Any) -> Subject:
    report = {
        "supervisor": "db1-812", "host": "db1", "pid": 812, "version": "0.3.0", "config": "/etc/factorial/system.toml",
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
  db1-812  running for 3h12m  (pid 812 on db1, factorial 0.3.0, /etc/factorial/system.toml)
! 2 of 4 processes running, 25 tasks in flight
! planner: 3 of 5 restarts used in 60 s, the last: SIGKILL: its event loop was blocked for 15 s
! planner.2 is restarting; its last exit: 3s ago: SIGKILL: its event loop was blocked for 15 s
! writer.1 is draining
! writer.1: its event loop is silent for 12 s

  NODE                STATE          PID  UPTIME  RESTARTS     TASKS   RSS   CPU  FILES   LAG  LAST EXIT
! system              degraded 2/4                0/5 in 60 s                                  -
! ├─ pipeline         degraded 1/3                0/5 in 60 s                                  -
! │  ├─ planner       degraded 1/2                3/5 in 60 s                                  -
  │  │  ├─ planner.1  running       3811   3h12m  0               12  182M   13%     41  2 ms  -
! │  │  └─ planner.2  restarting       -       -  3                -     -     -      -     -  3s ago: SIGKILL: its eve…
! │  └─ writer        degraded 0/1                0/5 in 60 s                                  -
! │     └─ writer.1   draining      3814   1m05s  0                1  1.4G   13%     41  12 s  -
  └─ weather          running 1/1                 0/5 in 60 s                                  -
     └─ weather.1     running         99   3h12m  1               12  182M  101%      7  2 ms  exit code 1

! db2-99  LOST, last heard of 40s ago  (pid 99 on db2)
  it had 1 of 1 process running, 12 tasks in flight; other processes continue their tasks when their leases have expired

  QUEUE    READY  THROTTLED  SUSPECTS  BACKOFF  PARKED  HELD
  planner     12          7         1        3       5    24
  weather      0          0         0        0       0  1200"""


def test_three_runners_in_different_states_a_lost_supervisor_and_the_queues() -> None:
    lost = subject(
        supervisor("system", worker("weather.1")), 40.2, is_lost=True, supervisor="db2-99", host="db2", pid=99
    )
    drawn = draw([subject(TREE), lost], {"weather": counts(0, 0, 0, 0, 0, 1200), "planner": counts(12, 7, 1, 3, 5, 24)})
    assert drawn == PICTURE


def test_when_all_is_well_one_line_says_so() -> None:
    drawn = draw([subject(supervisor("system", supervisor("weather", worker("weather.1"), worker("weather.2"))))], {})
    assert drawn.splitlines()[1] == "  all is well: 2 of 2 processes running, 24 tasks in flight"
    assert "!" not in drawn


def lines_of(tree: dict[str, Any], **changes: Any) -> list[str]:
    return draw([subject(tree, **changes)], {}).splitlines()


def row(lines: list[str], name: str) -> str:
    """The row of a node, without the lines of the tree, and with single spaces."""
    table = lines[lines.index("") :]
    [found] = [line for line in table if re.match(rf"[! ] [│├└─ ]*{re.escape(name)} ", line)]
    return " ".join(re.sub("[│├└─]", " ", found).split())


def test_a_crash_loop_is_not_well_even_while_everything_runs() -> None:
    children = [
        worker("crasher.1", restarts=1, last_exit="SIGKILL", last_exit_ago=50.0),
        worker("crasher.2", restarts=1, last_exit="SIGSEGV", last_exit_ago=2.0),
        worker("crasher.3", last_exit="shutdown", last_exit_ago=1.0),
    ]
    lines = lines_of(supervisor("system", supervisor("crasher", *children, restarts=2)))
    assert lines[1:4] == [
        "! 3 of 3 processes running, 36 tasks in flight",
        "! crasher: 2 of 5 restarts used in 60 s, the last: SIGSEGV",
        "",
    ]
    assert row(lines, "crasher") == "! crasher running 3/3 2/5 in 60 s -"


def test_a_process_with_a_silent_event_loop_is_marked() -> None:
    for lag, expected in ((2.9, []), (8.2, ["! weather.1: its event loop is silent for 8 s"])):
        lines = lines_of(supervisor("system", worker("weather.1", lag=lag)))
        assert [line for line in lines if "silent" in line] == expected
        assert row(lines, "weather.1").startswith("! ") is bool(expected)


def test_a_runner_that_gave_up_shows_why_and_its_processes_are_counted() -> None:
    why = "gave up: SIGSEGV, after 6 restarts in 60 s"
    broken = supervisor("broken", state="gave up", last_exit=why, last_exit_ago=65.0)
    lines = lines_of(supervisor("system", broken, supervisor("weather", worker("weather.1"))))
    assert lines[1:4] == [
        "! 1 of 1 process running, 12 tasks in flight; broken gave up",
        "! broken gave up 1m05s ago: SIGSEGV, after 6 restarts in 60 s",
        "",
    ]
    assert row(lines, "system").startswith("! system degraded 1/1 ")
    assert row(lines, "broken").startswith("! broken gave up 0/5 in 60 s 1m05s ago: gave up: SIGSEGV")
    with_processes = broken | {
        "children": [worker("broken.1", state="ended", tasks=None), worker("broken.2", state="ended")]
    }
    lines = lines_of(supervisor("system", with_processes, supervisor("weather", worker("weather.1"))))
    assert lines[1].startswith("! 1 of 3 processes running, ")
    assert "! broken.1 has ended" not in lines


def test_a_drained_node_is_reported_once() -> None:
    drained = [worker(f"weather.{number}", state="drained", tasks=None, last_exit="shutdown") for number in (1, 2)]
    writer = supervisor("writer", worker("writer.1", tasks=1), worker("writer.2", state="drained", tasks=None))
    lines = lines_of(supervisor("system", supervisor("weather", *drained), writer))
    assert lines[1:5] == [
        "! 1 of 4 processes running, 1 task in flight",
        "! weather is drained",
        "! writer.2 is drained",
        "",
    ]
    assert row(lines, "weather").startswith("! weather drained 0/2 ")
    assert row(lines, "writer").startswith("! writer degraded 1/2 ")
    assert row(lines, "system").startswith("! system degraded 1/4 ")


def test_a_draining_predecessor_has_a_row_and_its_tasks_count_but_it_is_not_a_further_process() -> None:
    old = {"process": "weather.1-0ddba1", "pid": 77, "uptime": 4000.0, "tasks": 3, "rss": 1024}
    lines = lines_of(supervisor("system", supervisor("weather", worker("weather.1", predecessors=[old]))))
    assert lines[1] == "  all is well: 1 of 1 process running, 15 tasks in flight"
    assert row(lines, "weather.1-0ddba1") == "weather.1-0ddba1 draining 77 1h06m - 3 1.0K - - - -"
    assert lines[-1].startswith("        └─ weather.1-0ddba1")


@pytest.mark.parametrize(
    ("state", "root", "shown"),
    [
        ("running", "running", "  db1-812  running for 6m50s  (pid 812 "),
        ("running", "starting", "  db1-812  starting (up 6m50s)  (pid 812 "),
        ("stopping", "draining", "  db1-812  stopping (up 6m50s)  (pid 812 "),
        ("reloading", "running", "  db1-812  reloading (up 6m50s)  (pid 812 "),
    ],
)
def test_the_first_line_shows_the_state_of_the_supervisor(state: str, root: str, shown: str) -> None:
    tree = supervisor("system", worker("weather.1"), state=root)
    assert lines_of(tree, uptime=410.0, state=state)[0].startswith(shown)


def test_long_problems_are_wrapped_and_not_cut() -> None:
    why = " ".join(f"word{number}" for number in range(40))
    lines = lines_of(supervisor("system", worker("weather.1", state="restarting", last_exit=why)))
    problems = lines[2 : lines.index("")]
    assert len(problems) > 2
    assert " ".join(" ".join(problems).split()) == f"! weather.1 is restarting; its last exit: {why}"


def test_the_sample_in_the_guide_is_what_is_printed() -> None:
    crashed = RESTARTING | {"restarts": 2, "last_exit": "SIGSEGV", "last_exit_ago": 2.0}
    fresh = {"uptime": 273_720.0, "lag": 0.001, "rss": 96_468_992, "cpu": 7.0, "open_files": 21}
    old = {"process": "planner.1-0ddba1", "pid": 835, "uptime": 273_720.0, "tasks": 4, "rss": 90_000_000, "cpu": 1.0}
    new = fresh | {"uptime": 8.0, "pid": 1204, "tasks": 13, "lag": 0.002, "predecessors": [old]}
    tree = supervisor(
        "system",
        supervisor("weather", worker("weather.1", **fresh, pid=831), worker("weather.2", **crashed), restarts=2),
        supervisor("planner", worker("planner.1", **new)),
    )
    report: dict[str, Any] = {"supervisor": "web1-3fa9c2", "host": "web1", "config": "system.toml", "uptime": 273_725.0}
    drawn = draw(
        [subject(tree, **report)], {"weather": counts(40, 0, 1, 3, 0, 12), "planner": counts(0, 6, 0, 0, 2, 17)}
    )
    guide = (Path(__file__).resolve().parents[2] / "docs/guides/operating.md").read_text(encoding="utf-8")
    assert f"```text\n{drawn}\n```\n" in guide, drawn


def test_many_nodes_in_trouble_are_counted_and_the_first_are_named() -> None:
    workers = [worker(f"weather.{number}", state="starting") for number in range(1, 9)]
    lines = draw([subject(supervisor("system", *workers))], {}).splitlines()
    assert lines[2] == "! weather.1 is starting"
    assert lines[7] == "! and 3 more"


def test_no_line_is_wider_than_a_terminal() -> None:
    long = "x" * 200
    tree = supervisor(long, supervisor(long, worker(long, state="ended", last_exit=long)), last_exit=long)
    both = [subject(tree, config=long), subject(tree, 99, is_lost=True, supervisor=long)]
    drawn = draw(both, {long: counts(1, 2, 3, 4, 5, 6)})
    assert max(len(line) for line in drawn.splitlines()) == _WIDTH


def test_unknown_values_are_dashes() -> None:
    drawn = draw([Subject({}, 1.0, False), subject({"type": "worker"}), subject({"type": "supervisor"})], {})
    assert "  ?  ? (up -)  (pid ? on ?, factorial ?)" in drawn
    assert "well" not in drawn
    assert draw([], {}) == ""


def test_text_from_reports_cannot_control_the_terminal() -> None:
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
    assert _size(number) == shown
