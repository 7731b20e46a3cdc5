"""Whether the storm did any harm to a cohort of tasks, told from what is stored, from the events, and from the witness.

`check` looks at a cohort whose tasks have ended, and adds to the `Figures` of the storm. What must not be goes into
`Figures.broken`, by promise:

    lost             an accepted task that is not there any more
    stuck            one that has not ended within its time
    wrong            one that has not come to what its kind comes to
    committed twice  a step or an end that the events tell of more than once
    zombies          an event of an execution from which the task had been taken back before
    repeated         a step that was begun again after it was written down, or had ended well before any harm came to
                     its process
    missed           events that a subscriber did not see, or not in order, or twice
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.storm_work import CHILD_KINDS, KINDS, Line, call_id, opening

__all__ = ["PROMISES", "RECORDED_WITHIN", "Cohort", "Figures", "Hit", "Job", "check", "quantile"]

PROMISES = ("lost", "stuck", "wrong", "committed twice", "zombies", "repeated", "missed")
RECORDED_WITHIN = 1.0
"""Seconds before harm in which a finished step may not have been written down yet, on a machine that has too much to
do. One that was, as its event tells, must not be begun again even then."""
CLOCKS = 0.002
"""Seconds by which the ids of events, which are in whole milliseconds, and the witness may differ."""
FINAL = ("completed", "failed", "cancelled")
ENDS = tuple(f"run_{status}" for status in FINAL)

Events = Sequence[dict[str, Any]]


@dataclass
class Job:
    """A task, and what was done to it from outside."""

    label: str
    kind: str
    owner: str
    task_id: str = ""
    noticed: bool = False
    """Whether the witness has told of it, and somebody outside acts upon that."""
    steered: bool = False
    cancelled: bool = False
    answers: list[bool] = field(default_factory=list)
    """What became of the results that were given to it: whether each was kept."""


@dataclass
class Cohort:
    """Tasks that are enqueued together, by some owners, and looked at together."""

    name: str
    owners: list[str]
    jobs: dict[str, Job]
    lines: list[Line] = field(default_factory=list)
    subscriber_saw: list[str] = field(default_factory=list)
    """The ids of the events that the subscriber of the first owner has seen."""


@dataclass(frozen=True)
class Hit:
    """Harm that was done to a process: whatever it has begun up to `until` may be executed elsewhere, too."""

    what: str
    """`killed`, or `killed with its supervisor`, and gone by `until`; `stopped`, and woken then; `orphaned`, to leave
    until then."""
    at: float
    until: float


@dataclass
class Figures:
    """What the whole storm came to."""

    ends: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    """What was wrong, the first of each kind."""
    taken_back: int = 0
    starved: set[str] = field(default_factory=set)
    """Processes that lost their lease although nobody had touched them: the machine was too slow for them."""
    steps: int = 0
    cut_off: int = 0
    """Repeated steps that had not ended when the harm came,"""
    unrecorded: list[float] = field(default_factory=list)
    """and for those that had, but were not recorded yet: how many seconds before."""
    repeated_by: Counter[str] = field(default_factory=Counter)
    recoveries: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By the kind of hit: the seconds until a step that was in flight went on elsewhere."""
    late: int = 0
    """Lines of the witness about tasks that were over long since: what zombies did."""
    events: int = 0
    steers: int = 0
    cancels: int = 0
    answers: int = 0

    def blame(self, promise: str, detail: str) -> None:
        """A promise was not kept."""
        self.broken[promise] += 1
        if self.broken[promise] <= 5:
            self.details.append(f"{promise}: {detail}")


def quantile(values: Sequence[float], share: float) -> float:
    """The value that so large a share of the values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def check(
    figures: Figures,
    cohort: Cohort,
    stored: dict[str, dict[str, Any] | None],
    events: Mapping[str, Events],
    hits: dict[int, list[Hit]],
    processes: dict[str, int],
) -> None:
    """Check a cohort that has ended.

    `stored`: what is stored of each task by id, of children too; `events` by owner; `hits` by pid; `processes`: the pid
    of each that was ever hit, by name.
    """
    if stuck := [data for data in stored.values() if data and data["status"] not in FINAL]:
        for data in stuck:  # what else is to be said of the cohort would be said too early
            about = f"{data['payload']['query']} {data['payload']['label']} ({data['id']})"
            figures.blame("stuck", f"{about} is {data['status']}, holder {data['process']}, awaits {data['awaits']}")
        return
    _subscriber(figures, cohort, events[cohort.owners[0]])
    by_task: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in (event for owner in cohort.owners for event in events[owner]):
        figures.events += 1
        by_task[event["task_id"]].append(event)
    jobs = [*cohort.jobs.values(), *_children(cohort, stored)]
    known = {job.task_id for job in jobs}
    for task_id in by_task.keys() - known:
        figures.blame("wrong", f"task {task_id} has events, and nobody has asked for it")
    starved: set[str] = set()
    recorded: dict[tuple[str, str, int], float] = {}
    for job in jobs:
        recorded |= _recorded(job, by_task[job.task_id])
        _task(figures, job, stored.get(job.task_id), by_task[job.task_id])
        starved |= set(_taken_back(figures, job, by_task[job.task_id], processes))
    steps: dict[tuple[str, str, int, int], list[_Execution]] = defaultdict(list)
    for execution in _executions(cohort.lines):
        steps[execution.label, execution.what, execution.turn, execution.attempt].append(execution)
    for (label, what, turn, _), executions in steps.items():
        _step(figures, executions, hits, starved, recorded.get((label, what, turn), math.inf))


def _children(cohort: Cohort, stored: dict[str, dict[str, Any] | None]) -> Iterator[Job]:
    """The children of this cohort's families: as many as there have to be, found by their labels."""
    ids = {data["payload"]["label"]: data["id"] for data in stored.values() if data and data["parent_id"]}
    for job in cohort.jobs.values():
        if job.kind == "family":
            for number, kind in enumerate(CHILD_KINDS):
                label = f"{job.label}.{number}"
                yield Job(label, kind, job.owner, ids.get(label, f"(child {label})"))


def _task(figures: Figures, job: Job, data: dict[str, Any] | None, events: Events) -> None:
    """One task: it is there, has ended as it had to, and each of its steps and its end were committed once."""
    about = f"{job.kind} {job.label} ({job.task_id})"
    if data is None:
        figures.blame("lost", f"{about}: {[event['event_type'] for event in events]}")
        return
    status, kind = data["status"], KINDS[job.kind]
    figures.ends[status] += 1
    figures.steers += job.steered
    figures.cancels += job.cancelled
    figures.answers += sum(job.answers)
    expected = "cancelled" if job.cancelled else kind.status
    output, roles = _expected(job)
    messages = data["payload"]["messages"]
    if status != expected:
        figures.blame("wrong", f"{about} is {status} and not {expected}: {data['error']}")
    elif status == "completed" and data["payload"]["output"] != output:
        figures.blame("wrong", f"{about}: {data['payload']['output']!r} and not {output!r}")
    elif status == "completed" and [message["role"] for message in messages] not in roles:
        figures.blame("wrong", f"{about}: {[message['role'] for message in messages]}")
    elif kind is KINDS["ask"] and job.answers != [True, False]:
        figures.blame("wrong", f"{about}: its answer was given twice, and kept: {job.answers}")
    told = Counter(_told(events))
    twice = [what for what, count in told.items() if count > 1]
    if twice:
        figures.blame("committed twice", f"{about}: {twice}")
    if not told[f"run_{status}"] or sum(told[end] for end in ENDS) != 1:
        figures.blame("committed twice", f"{about} is {status}, and its ends are {[end for end in ENDS if told[end]]}")
    if status == "completed" and (missing := [what for what in _expected_events(job) if not told[what]]):
        figures.blame("lost", f"{about}: events {missing} of {list(told)}")
    if job.steered and not told["run_steering_applied"] + told["run_steering_failed"]:
        figures.blame("lost", f"{about}: the message that it was steered with")


def _expected(job: Job) -> tuple[str, list[list[str]]]:
    """The output of a completed task, and the roles of its messages: one of these lists."""
    kind = KINDS[job.kind]
    roles = [message["role"] for message in opening(job.kind)] + ["user"]
    for tools in kind.turns:
        roles += ["assistant", *["tool"] * len(tools)]
    if not job.steered:
        return kind.answer, [roles]
    places = [place for place, role in enumerate(roles) if role == "assistant"]
    before = [[*roles[:place], "user", *roles[place:]] for place in places]
    return f"{kind.answer} steered", [*before, [*roles, "user", "assistant"]]


def _expected_events(job: Job) -> Iterator[str]:
    yield from ("run_enqueued", "run_started", "agent_output")
    for turn, tools in enumerate(KINDS[job.kind].turns):
        yield f"{turn} completion"
        yield f"{turn} run_turn"
        yield from (f"tool_action {call_id(turn, number)}" for number in range(len(tools)))


def _told(events: Events) -> Iterator[str]:
    """What must not happen twice to a task, as its events tell of it."""
    for event in events:
        name = event["event_type"]
        if name.startswith("progress_update_") and name.endswith("_completed"):
            operation = name.removeprefix("progress_update_").removesuffix("_completed")
            if operation == "tool_action":
                yield f"tool_action {event['data']['args'][0]['id']}"
            else:
                yield f"{event['turn']} {operation}"
        elif name in (*ENDS, "run_enqueued", "run_started", "agent_output", "run_steering_applied", "task_retried"):
            yield name


def _taken_back(figures: Figures, job: Job, events: Events, processes: dict[str, int]) -> Iterator[str]:
    """The ids of the task if it was taken back from a process that nobody had touched.

    An execution from which the task was taken back writes nothing more: the number of the pickup, which each event of
    an execution carries, is higher after that.
    """
    pickups = reclaims = 0
    lowest = 1
    for event in events:
        if event["event_type"] == "task_reclaimed":
            figures.taken_back += 1
            reclaims += 1
            lowest = max(pickups, reclaims) + 1
            process = event["data"]["process"]
            if event["data"]["cause"] == "killed" and process not in processes:
                figures.starved.add(process)
                yield job.label
        elif number := (event["metadata"] or {}).get("pickups"):
            if number < max(lowest, pickups):
                figures.blame(
                    "zombies", f"{job.kind} {job.label}: pickup {number} after {max(lowest, pickups)}: {event}"
                )
            pickups = max(pickups, number)


def _recorded(job: Job, events: Events) -> dict[tuple[str, str, int], float]:
    """When each step of the task was written down, by label, step and turn: its event is stored in the same moment."""
    tools = {
        f"tool_action {call_id(turn, number)}": (tool, turn)
        for turn, tools in enumerate(KINDS[job.kind].turns)
        for number, tool in enumerate(tools)
    }
    found = {}
    for event in events:
        at = int(event["id"].partition("-")[0]) / 1000
        for told in _told([event]):
            turn, _, operation = told.partition(" ")
            if told in tools:
                found[job.label, *tools[told]] = at
            elif operation == "completion":
                found[job.label, "model", int(turn)] = at
    return found


@dataclass
class _Execution:
    """One execution of a step, as the witness saw it."""

    label: str
    what: str
    turn: int
    attempt: int
    pid: int
    begun: float
    ended: float | None = None


def _executions(lines: Iterable[Line]) -> list[_Execution]:
    """In the order in which they began."""
    found: list[_Execution] = []
    running: dict[tuple[str, str, int, int, int], _Execution] = {}
    for line in sorted(lines):
        key = (line.label, line.what, line.turn, line.attempt, line.pid)
        if line.edge == "begin":
            running[key] = _Execution(line.label, line.what, line.turn, line.attempt, line.pid, line.at)
            found.append(running[key])
        elif key in running:
            running.pop(key).ended = line.at
    return found


def _step(
    figures: Figures, executions: list[_Execution], hits: dict[int, list[Hit]], starved: set[str], recorded: float
) -> None:
    """One step: it was executed once, and once more for each time that harm came to it, before it was recorded."""
    figures.steps += 1
    if len(executions) == 1:
        return
    harmed = [(one, hit) for one in executions if (hit := _what_hit(one, hits))]
    repeats = len(executions) - 1
    in_vain = [
        one
        for one in executions
        if one.begun > recorded + CLOCKS and not any(hit.at <= one.begun <= hit.until for hit in hits.get(one.pid, ()))
    ]  # not by a zombie
    if (len(harmed) < repeats or in_vain) and executions[0].label not in starved:
        about = f"recorded at {recorded}; hits {[hits.get(one.pid) for one in executions]}"
        figures.blame("repeated", f"{executions}; {about}")
    figures.repeated_by["starved"] += max(0, repeats - len(harmed))
    for one, hit in harmed[:repeats]:
        figures.repeated_by[hit.what] += 1
        if one.ended is None:
            figures.cut_off += 1
        else:
            figures.unrecorded.append(max(0.0, hit.at - one.ended))
        if after := [other.begun for other in executions if other.pid != one.pid and other.begun > hit.at]:
            figures.recoveries[hit.what].append(min(after) - hit.at)


def _what_hit(one: _Execution, hits: dict[int, list[Hit]]) -> Hit | None:
    """What came upon this execution before its result was recorded."""
    for hit in hits.get(one.pid, ()):
        if one.begun <= hit.until and (one.ended is None or one.ended > hit.at - RECORDED_WITHIN):
            return hit
    return None


def _subscriber(figures: Figures, cohort: Cohort, events: Events) -> None:
    if cohort.subscriber_saw != [event["id"] for event in events]:
        missing = [event["id"] for event in events if event["id"] not in set(cohort.subscriber_saw)]
        figures.blame(
            "missed", f"the subscriber of {cohort.owners[0]} saw {len(cohort.subscriber_saw)} of {len(events)} events, "
            f"and not {missing[:5]}"
        )  # fmt: skip
