"""What must be true of a namespace at any moment, whatever has happened: the rules, over what was read
of it. Pure.

The first seven are the protocol's promise; the others are about what supports it. Each finding names the run, owner,
process or agent that it is about, says in a sentence what is wrong, and what can be done about it. `checkup.py` makes
sure that a finding is no change that was under way while it was read.
"""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

from factorial.mailbox.doctor.stored import BELONGINGS, ENDED, PARKED, Batch, Place, Process, Run

__all__ = [
    "HERE", "Finding", "Invariant",
    "about_batch", "about_count", "about_process", "about_run", "about_running", "about_throttled", "about_wake",
]  # fmt: skip


class Invariant(IntEnum):
    """The rules, by number."""

    PLACE = 1
    COMMIT = 2
    COUNT = 3
    WAKE = 4
    REQUEST = 5
    RESULT = 6
    CHILD = 7
    TOLD = 8
    SUSPECT = 9
    REMAINS = 10

    @property
    def promise(self) -> str:
        """What must be true."""
        return _PROMISES[self]


_PROMISES = {
    Invariant.PLACE: "every run is in exactly one place: ready or throttled, held, due, parked, ended",
    Invariant.COMMIT: "each step of a run is committed once, and only by the process that holds it",
    Invariant.COUNT: "the counts of each owner's runs are the numbers of those runs",
    Invariant.WAKE: "where something is ready, a wake token is there for living processes; what is throttled is let in",
    Invariant.REQUEST: "an accepted cancel ends the run as cancelled; an accepted steer is read or answered",
    Invariant.RESULT: "a result is accepted once, and an early one is not lost; what has come is waited for no more",
    Invariant.CHILD: "a parent is told of each child's end exactly once",
    Invariant.TOLD: "the end of each run is told by exactly one event",
    Invariant.SUSPECT: "a process holds one suspect at the most, and it is noted which",
    Invariant.REMAINS: "of runs that have ended nothing is left but what can be read of them; of removed ones nothing",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong."""

    invariant: Invariant
    subject: str
    """What it is about: 'run 4f1c', 'owner user1', 'process weather.1-3fa9c2', 'agent weather', 'batch 77',
    'key ...'."""
    text: str
    mend: str
    """What can be done about it; empty if nothing can, or need be."""

    def __str__(self) -> str:
        return f"invariant {self.invariant}: {self.subject} {self.text}" + (f" ({self.mend})" if self.mend else "")


def about_run(run: Run) -> Iterator[Finding]:
    """What is wrong with a run. All rules that concern one run alone."""
    if not run.status:
        yield from _gone(run)
    elif run.status not in ("queued", "processing", "backoff", *PARKED, *ENDED) or not run.agent:
        yield Finding(
            Invariant.PLACE, f"run {run.id}", f"has the status {run.status!r} and the agent {run.agent!r}: not ours",
            "it is taken up by nobody: delete its keys",
        )  # fmt: skip
    else:
        for rule in (_place, _commits, _requests, _awaited, _family, _end, _blame, _remains):
            yield from rule(run)


_REPORT = "please report it, with the log of its processes"
HERE = "{NAMESPACE:0}:"
"""How each key begins, in what a finding says can be done."""
_LOST = f"nobody will take it up: cancel it, and enqueue its work again; {_REPORT}"


def _place(run: Run) -> Iterator[Finding]:
    subject = f"run {run.id}"
    found = [place for place in run.places if place[0] != "children"]
    if run.status == "cancelled":  # the entry that it leaves in the queue is skipped by the next claim
        found = [place for place in found if place != ("ready", run.agent)]
    if run.status in PARKED and ("due", run.agent) in found:
        found.remove(("due", run.agent))  # without a deadline, it does no harm: what had one may have come
    allowed = _allowed(run)
    if len(found) != 1 or found[0] not in allowed:
        mend = _REPORT if found or run.has_ended else _give_back(run) if run.holder else _LOST
        yield Finding(
            Invariant.PLACE, subject,
            f"of agent {run.agent} is {run.status} and found in {_shown(found)}, not just in {_shown(allowed, ' or ')}",
            mend,
        )  # fmt: skip
    if (run.status == "processing") != bool(run.holder):
        yield Finding(Invariant.PLACE, subject, f"is {run.status}, and its holder is {run.holder!r}", _REPORT)
    elif not run.holder_is_known:
        yield Finding(
            Invariant.PLACE, subject, f"is held by process {run.holder}, which has never registered or is buried",
            f"{_command('ZADD', f'{HERE}processes', 0, run.holder)}: maintenance then takes back what it holds; "
            f"{_REPORT}",
        )  # fmt: skip


def _give_back(run: Run) -> str:
    """A cancel alone would not do: it is for the holder to hear, and nobody takes back what is in no set."""
    return (
        f"{_command('SADD', f'{HERE}held:{run.holder}', run.id)}: unless its holder works on it, it is given back "
        f"within some seconds; {_REPORT}"
    )


def _command(*words: object) -> str:
    """As it is typed behind `redis-cli` or `valkey-cli`."""
    return shlex.join(map(str, words))


def _allowed(run: Run) -> tuple[Place, ...]:
    """The places of which one is the run's only one."""
    match run.status:
        case "queued" if run.is_suspect:
            return (("suspects", run.agent),)
        case "queued":
            return (("ready", run.agent), ("throttled", f"{run.agent}:{run.owner}"))
        case "processing":
            return (("held", run.holder),)
        case "backoff":
            return (("due", run.agent),)
        case status if status in PARKED:
            return (("parked", run.agent),)
        case status:
            return (("ended", f"{run.agent}:{status}"),)


def _shown(places: tuple[Place, ...] | list[Place], link: str = " and ") -> str:
    return link.join(f"{kind} of {name}" for kind, name in places) or "no place"


def _commits(run: Run) -> Iterator[Finding]:
    """What the last commit says of itself, against the run's own token."""
    subject = f"run {run.id}"
    if not run.last_commit:
        if run.seq:
            yield Finding(Invariant.COMMIT, subject, f"has {run.seq} commits, and no last one", _REPORT)
        if run.status in (*PARKED, "completed"):
            yield Finding(Invariant.COMMIT, subject, f"is {run.status}, and no process has committed that", _REPORT)
        return
    epoch, nonce, seq, action = _taken_apart(run.last_commit)
    if seq + 1 != run.seq or epoch > run.epoch:
        yield Finding(
            Invariant.COMMIT, subject,
            f"is at epoch {run.epoch} and seq {run.seq}, and its last commit was made at epoch {epoch} and seq {seq}",
            _REPORT,
        )  # fmt: skip
    elif epoch == run.epoch and nonce != run.nonce:
        yield Finding(
            Invariant.COMMIT,
            subject,
            f"was claimed as {run.nonce}, and its last commit is of the claim {nonce}",
            _REPORT,
        )
    elif run.status in (*PARKED, "completed") and (epoch != run.epoch or action != _ACTIONS[run.status]):
        yield Finding(
            Invariant.COMMIT, subject,
            f"is {run.status} at epoch {run.epoch}, and its last commit said {action!r} at epoch {epoch}", _REPORT,
        )  # fmt: skip
    elif run.status == "failed" and action != "fail" and not run.error.startswith(_SCRIPTS_ERRORS):
        yield Finding(Invariant.COMMIT, subject, f"has failed, and its last commit said {action!r}", _REPORT)
    if run.status == "processing" and not run.nonce:
        yield Finding(Invariant.COMMIT, subject, "is held without a claim", _REPORT)


_SCRIPTS_ERRORS = ("crash_loop", "what is stored for task")
"""How the error of a run begins that a script has ended: `lib/reclaim.lua`, `claim.lua`."""
_ACTIONS = {"completed": "complete", "pending_tool_results": "park", "pending_child_tasks": "park"}


def _taken_apart(commit: str) -> tuple[int, str, int, str]:
    """Epoch, nonce, seq and action of a commit. What cannot be read is at an epoch that never was."""
    try:
        epoch, nonce, seq, action, _ = commit.split(":")
        return int(epoch), nonce, int(seq), action
    except ValueError:
        return 1 << 62, "", 0, commit


def _requests(run: Run) -> Iterator[Finding]:
    subject = f"run {run.id}"
    if run.cancel_requested and run.status not in ("processing", "cancelled"):
        yield Finding(
            Invariant.REQUEST, subject, f"is to be cancelled, and is {run.status}",
            "" if run.has_ended else "cancel it again",
        )  # fmt: skip
    if run.has_ended and "mail" in run.belongings:
        yield Finding(
            Invariant.REQUEST, subject, f"is {run.status}, and steering that it accepted was neither read nor answered",
            "steer a new task",
        )  # fmt: skip


def _awaited(run: Run) -> Iterator[Finding]:
    """A thing that is waited for is '?' and its deadline, one that has come '!'."""
    if run.status not in PARKED:
        return
    subject, awaited = f"run {run.id}", run.awaited or {}
    deadlines = {key: _number(value[1:]) for key, value in awaited.items() if _is_open(key, value)}
    counted = awaited.get("open", "nothing")
    if not deadlines or str(len(deadlines)) != counted:
        yield Finding(
            Invariant.RESULT, subject,
            f"is parked for {counted} of open things, and waits for {len(deadlines)}: {_some(deadlines)}", _LOST,
        )  # fmt: skip
    if any(deadlines.values()) and ("due", run.agent) not in run.places:
        yield Finding(
            Invariant.RESULT, subject, "waits for things with a deadline, and is not due at any time",
            "it waits for ever if they do not come: cancel it then",
        )  # fmt: skip
    for call in run.kept_early:
        yield Finding(
            Invariant.RESULT, subject, f"waits for {call}, whose result came before it parked, and was lost",
            "give the result again",
        )  # fmt: skip
    for child in run.ended_children:
        yield Finding(Invariant.CHILD, subject, f"waits for its child {child}, which has ended", _LOST)


def _is_open(key: str, value: str) -> bool:
    return key.startswith(("tool:", "child:")) and value.startswith("?")


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _some(names: Mapping[str, object]) -> str:
    shown = ", ".join(list(names)[:3])
    return shown + (", ..." if len(names) > 3 else "") or "nothing"


def _family(run: Run) -> Iterator[Finding]:
    """A parent lists those of its children that have not ended, as long as it has not ended itself."""
    for kind, name in run.places:
        if kind == "children" and name != run.parent:
            yield Finding(
                Invariant.CHILD,
                f"run {run.id}",
                f"is listed as a child of {name}, and its parent is {run.parent!r}",
                _REPORT,
            )
    if not run.parent:
        return
    expected = not run.has_ended and run.parent_status not in ("", *ENDED)
    if run.parent_lists_it != expected:
        listed = "is listed" if run.parent_lists_it else "is not listed"
        yield Finding(
            Invariant.CHILD, f"run {run.id}",
            f"is {run.status} and {listed} among the living children of {run.parent}, which is "
            f"{run.parent_status or 'gone'}", "" if run.has_ended else "a cancel of the parent would miss it",
        )  # fmt: skip


def _end(run: Run) -> Iterator[Finding]:
    if run.ends is None:
        return
    expected = (run.status,) if run.has_ended else ()
    if run.ends != expected:
        told = " and ".join(run.ends) or "nothing"
        yield Finding(
            Invariant.TOLD, f"run {run.id}", f"is {run.status}, and its events tell of its end: {told}", _REPORT
        )


def _blame(run: Run) -> Iterator[Finding]:
    subject = f"run {run.id}"
    if max(run.crashes, run.strikes) > run.recoveries:
        yield Finding(
            Invariant.SUSPECT, subject,
            f"was taken back {run.recoveries} times, with {run.crashes} crashes and {run.strikes} strikes", _REPORT,
        )  # fmt: skip
    expected = (run.holder,) if run.status == "processing" and run.is_suspect else ()
    if run.noted_by != expected:
        who = "a suspect" if run.is_suspect else "no suspect"
        yield Finding(
            Invariant.SUSPECT, subject,
            f"is {run.status} and {who}, and noted as the suspect of {', '.join(run.noted_by) or 'no process'}",
            f"restart {', '.join(run.noted_by)}: it would take up no other suspect" if run.noted_by else "",
        )  # fmt: skip


def _remains(run: Run) -> Iterator[Finding]:
    if run.has_ended:
        for kind in run.belongings:
            if kind not in ("conversation", "fields", "mail"):  # mail is a request that was not answered
                yield Finding(
                    Invariant.REMAINS, f"run {run.id}", f"has ended, and its {BELONGINGS[kind]} is still there",
                    "harmless; it goes with the run",
                )  # fmt: skip


def _gone(run: Run) -> Iterator[Finding]:
    subject = f"run {run.id}"
    for kind, name in run.places:
        if kind not in ("ready", "ended"):  # a cancelled run leaves the first, and the next claim skips it
            invariant = Invariant.CHILD if kind == "children" else Invariant.REMAINS
            yield Finding(invariant, subject, f"is gone, and still stands in {kind} of {name}", _REPORT)
    for kind in run.belongings:
        yield Finding(
            Invariant.REMAINS,
            subject,
            f"is gone, and its {BELONGINGS.get(kind, 'hash')} is still there",
            "harmless: delete it",
        )
    for process in run.noted_by:
        yield Finding(
            Invariant.SUSPECT, subject, f"is gone, and noted as the suspect of {process}",
            f"restart {process}: it would take up no other suspect",
        )  # fmt: skip


# What concerns more than one run.


def about_count(owner: str, active: int, counted: int | None) -> Iterator[Finding]:
    """`active`: the owner's runs that have not ended. `counted`: what is stored as their number."""
    if active != (counted or 0):
        yield Finding(
            Invariant.COUNT, f"owner {owner}", f"has {active} runs that have not ended, and the count says {counted}",
            "no task is affected; a subscription without a position may begin at another event",
        )  # fmt: skip


def about_running(agent: str, owner: str, held: int, counted: int) -> Iterator[Finding]:
    """`held`: the owner's runs that processes of the agent hold. `counted`: what is stored as their number."""
    if held != counted:
        effect = "with an owner limit, it gets fewer places than it should" if counted > held else "it gets more places"
        key = f"{HERE}running:{agent}"
        mend = _command("HSET", key, owner, held) if held else _command("HDEL", key, owner)
        yield Finding(
            Invariant.COUNT, f"owner {owner}", f"has {held} runs of {agent} held, and the count says {counted}",
            f"{effect}: {mend}, when none of its runs is being taken up; {_REPORT}",
        )  # fmt: skip


def about_throttled(agent: str, owner: str, waiting: int) -> Iterator[Finding]:
    """`waiting`: the owner's throttled runs of this agent, while none of its runs is held or ready to let them in."""
    if waiting:
        yield Finding(
            Invariant.WAKE, f"owner {owner}",
            f"has {waiting} throttled runs of {agent}, and none that is held or ready and would let them in",
            f"{_command('HDEL', f'{HERE}running:{agent}', owner)}, then enqueue another task of this owner and agent: "
            "its end lets the next one in",
        )  # fmt: skip


def about_wake(agent: str, ready: int, suspects: int, *, has_token: bool, passed: int) -> Iterator[Finding]:
    """`ready`, `suspects`: runs of the agent to take up. `passed`: processes that have passed the token on."""
    mend = "a worker looks around every few seconds, if it has room; the next task that is enqueued brings a token"
    if ready and not has_token:
        yield Finding(Invariant.WAKE, f"agent {agent}", f"has {ready} runs ready, and there is no wake token", mend)
    elif suspects and not has_token and not passed:
        yield Finding(
            Invariant.WAKE, f"agent {agent}", f"has {suspects} suspects waiting, and nobody will hear of it", mend
        )


def about_process(name: str, agent: str, process: Process | None) -> Iterator[Finding]:
    """What is wrong with a process that has passed a wake token of the agent on to others."""
    if process is None or not process.suspect:
        yield Finding(
            Invariant.SUSPECT, f"process {name}", f"passed on a wake token of {agent}, and has room for a suspect",
            "the next crash or success of a suspect mends it",
        )  # fmt: skip


def about_batch(name: str, batch: Batch) -> Iterator[Finding]:
    """What a batch says of its runs, and what they say."""
    ended = batch.ended_runs.total()
    gone = batch.total - batch.runs  # removed, or not spawned yet
    if not 0 <= batch.ended - ended <= gone or batch.active != batch.runs - ended:
        yield Finding(
            Invariant.CHILD, f"batch {name}",
            f"says that of its {batch.total} runs {batch.ended} have ended and {batch.active} have not; "
            f"of the {batch.runs} that are stored, {ended} have ended",
            "its events tell a wrong progress; its parent is told of each child all the same",
        )  # fmt: skip
