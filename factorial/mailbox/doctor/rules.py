"""The rules about one run. Pure: over what was read of the run.

`check.py` makes sure that a finding is not a change in progress while the run was read. `KEYS` is a namespace without a
name: see `invariants.HERE`.
"""

from collections.abc import Iterator, Mapping

from factorial.mailbox.doctor.invariants import KEYS, REPORT, Finding, Invariant
from factorial.mailbox.doctor.stored import PlacedAt, Run
from factorial.mailbox.doctor.wording import command, in_places
from factorial.mailbox.keys import KINDS
from factorial.mailbox.places import ENDED, PARKED, PLACES

__all__ = ["about_run"]

_STATUSES = frozenset(status for place in PLACES for status in place.statuses)
_LOST = f"No worker will claim it. Cancel the task, and enqueue its work again. {REPORT}"
_SCRIPTS_ERRORS = ("crash_loop", "what is stored for task")
"""How the error of a run starts if a script ended the run: `lib/reclaim.lua`, `claim.lua`."""
_ACTIONS = {"completed": "complete", "pending_tool_results": "park", "pending_child_tasks": "park"}


def about_run(run: Run) -> Iterator[Finding]:
    """What is wrong with a run, by all rules that need nothing but this run."""
    if not run.status:
        yield from _missing(run)
    elif run.status not in _STATUSES or not run.agent:
        yield _finding(
            run, Invariant.PLACE,
            f"has the status {run.status!r} and the agent {run.agent!r}, which Factorial does not write",
            f"No worker will claim it. Delete it with {command('DEL', KEYS.run(run.id))}. The doctor then lists what "
            "else is stored of it.",
        )  # fmt: skip
    else:
        for rule in (_place, _holder, _commits, _requests, _awaits, _family, _end_event, _blame, _remains):
            yield from rule(run)


def _finding(run: Run, invariant: Invariant, predicate: str, fix: str) -> Finding:
    return Finding(invariant, f"run {run.id}", f"Run {run.id} {predicate}.", fix)


def _place(run: Run) -> Iterator[Finding]:
    found = [place for place in run.places if place[0] != "children"]
    if run.status == "cancelled":  # its entry stays in the queue until a claim skips it
        found = [place for place in found if place != ("ready", run.agent)]
    if run.status in PARKED and ("due", run.agent) in found:
        found.remove(("due", run.agent))  # harmless without a deadline: what had one may have arrived
    allowed = _allowed(run)
    if len(found) != 1 or found[0] not in allowed:
        fix = REPORT if found or run.has_ended else _restore(run) if run.holder else _LOST
        yield _finding(
            run, Invariant.PLACE,
            f"of agent {run.agent} has the status {run.status}, but it is {in_places(found)}. It must be "
            f"{in_places(allowed, ' or ')}, and nowhere else",
            fix,
        )  # fmt: skip


def _restore(run: Run) -> str:
    """A cancel alone would not end the run: only its holder reads that, and nobody reclaims what no process holds."""
    return (
        f"Put it back with {command('SADD', KEYS.held(run.holder), run.id)}. If its holder does not work on it, it "
        f"releases the run within some seconds. {REPORT}"
    )


def _allowed(run: Run) -> tuple[PlacedAt, ...]:
    """The places that the run's status allows. The run must be in one of them."""
    return tuple(
        (place.kind, place.name(agent=run.agent, owner=run.owner, process=run.holder, status=run.status))
        for place in PLACES if place.admits(run.status, suspect=run.is_suspect)
    )  # fmt: skip


def _holder(run: Run) -> Iterator[Finding]:
    if (run.status == "processing") != bool(run.holder):
        holder = f"process {run.holder} is stored as its holder" if run.holder else "no holder is stored"
        yield _finding(run, Invariant.PLACE, f"has the status {run.status}, but {holder}", REPORT)
    elif not run.holder_is_registered:
        yield _finding(
            run, Invariant.PLACE,
            f"is held by process {run.holder}, which is not registered: nobody will reclaim it",
            f"Register the process with {command('ZADD', KEYS.key('processes'), 0, run.holder)}. Maintenance then "
            f"reclaims what it holds, unless it sends heartbeats. {REPORT}",
        )  # fmt: skip


def _commits(run: Run) -> Iterator[Finding]:
    """The last commit must agree with the run's token and status."""
    if not run.last_commit:
        if run.seq:
            yield _finding(run, Invariant.COMMIT, f"counts {run.seq} commits, but the last one is not stored", REPORT)
        if run.status in (*PARKED, "completed"):
            yield _finding(run, Invariant.COMMIT, f"is {run.status}, but no process has committed that", REPORT)
        return
    epoch, nonce, seq, action = _parts(run.last_commit)
    if seq + 1 != run.seq or epoch > run.epoch:
        yield _finding(
            run, Invariant.COMMIT,
            f"is at epoch {run.epoch} and sequence number {run.seq}, but its last commit was made at epoch {epoch} and "
            f"sequence number {seq}",
            REPORT,
        )  # fmt: skip
    elif epoch == run.epoch and nonce != run.nonce:
        yield _finding(
            run, Invariant.COMMIT,
            f"was claimed with the nonce {run.nonce}, but its last commit in the same epoch has the nonce {nonce}",
            REPORT,
        )  # fmt: skip
    elif run.status in (*PARKED, "completed") and (epoch != run.epoch or action != _ACTIONS[run.status]):
        yield _finding(
            run, Invariant.COMMIT,
            f"is {run.status} at epoch {run.epoch}, but its last commit was {action!r} at epoch {epoch}", REPORT,
        )  # fmt: skip
    elif run.status == "failed" and action != "fail" and not run.error.startswith(_SCRIPTS_ERRORS):
        yield _finding(run, Invariant.COMMIT, f"has failed, but its last commit was {action!r}", REPORT)
    if run.status == "processing" and not run.nonce:
        yield _finding(run, Invariant.COMMIT, "is held, but no process has claimed it", REPORT)


def _parts(commit: str) -> tuple[int, str, int, str]:
    """Epoch, nonce, sequence number and action of a commit. One that cannot be parsed has an impossible epoch."""
    try:
        epoch, nonce, seq, action, _ = commit.split(":")
        return int(epoch), nonce, int(seq), action
    except ValueError:
        return 1 << 62, "", 0, commit


def _requests(run: Run) -> Iterator[Finding]:
    if run.cancel_requested and run.status not in ("processing", "cancelled"):
        yield _finding(
            run, Invariant.REQUEST, f"was to be cancelled, but its status is {run.status}",
            f"No action helps, because the run has ended. {REPORT}" if run.has_ended else "Cancel the task again.",
        )  # fmt: skip
    if run.has_ended and "mail" in run.belongings:
        yield _finding(
            run, Invariant.REQUEST, f"is {run.status}, but steering that it accepted was neither read nor answered",
            "Enqueue a new task, and steer that one.",
        )  # fmt: skip


def _awaits(run: Run) -> Iterator[Finding]:
    """In the list of awaits, '?' and a deadline mean that a thing has not arrived, '!' that it has."""
    if run.status not in PARKED:
        return
    awaits = run.awaits or {}
    deadlines = {key: _number(value[1:]) for key, value in awaits.items() if _is_open(key, value)}
    counted = awaits.get("open", "no number")
    if not deadlines or str(len(deadlines)) != counted:
        yield _finding(
            run, Invariant.RESULT,
            f"is parked and stores {counted} as the number of things that it awaits, but it awaits {len(deadlines)}: "
            f"{_some(deadlines)}",
            _LOST,
        )  # fmt: skip
    if any(deadlines.values()) and ("due", run.agent) not in run.places:
        yield _finding(
            run, Invariant.RESULT, f"awaits something with a deadline, but it is not {in_places([('due', run.agent)])}",
            "The deadline will have no effect. If the results do not arrive, cancel the task.",
        )  # fmt: skip
    for call in run.early_results:
        yield _finding(
            run, Invariant.RESULT, f"awaits {call}, whose result arrived before the run parked and was lost",
            "Deliver the result again.",
        )  # fmt: skip
    for child in run.ended_children:
        yield _finding(run, Invariant.CHILD, f"awaits its child {child}, which has ended", _LOST)


def _is_open(key: str, value: str) -> bool:
    return key.startswith(("tool:", "child:")) and value.startswith("?")


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _some(names: Mapping[str, object]) -> str:
    shown = ", ".join(list(names)[:3])
    return shown + (", ..." if len(names) > 3 else "") or "nothing"


def _family(run: Run) -> Iterator[Finding]:
    """A parent that has not ended lists those of its children that have not ended."""
    for kind, name in run.places:
        if kind == "children" and name != run.parent:
            parent = f"its parent is run {run.parent}" if run.parent else "it has no parent"
            yield _finding(run, Invariant.CHILD, f"is listed as a child of run {name}, but {parent}", REPORT)
    if not run.parent:
        return
    expected = not run.has_ended and run.parent_status not in ("", *ENDED)
    if run.is_listed_by_parent == expected:
        return
    listed = "is listed" if run.is_listed_by_parent else "is not listed"
    parent_status = f"has the status {run.parent_status}" if run.parent_status else "does not exist"
    yield _finding(
        run, Invariant.CHILD,
        f"has the status {run.status} and {listed} among the active children of run {run.parent}, which "
        f"{parent_status}",
        f"No action is needed: the entry has no effect. {REPORT}" if run.is_listed_by_parent
        else "If you cancel the parent, cancel this task, too: the parent's cancel will not reach it.",
    )  # fmt: skip


def _end_event(run: Run) -> Iterator[Finding]:
    if run.reported_ends is None:
        return
    expected = (run.status,) if run.has_ended else ()
    if run.reported_ends != expected:
        reported = " and ".join(run.reported_ends) or "no end"
        yield _finding(
            run, Invariant.END_EVENT, f"has the status {run.status}, but its events report: {reported}", REPORT
        )


def _blame(run: Run) -> Iterator[Finding]:
    if max(run.crashes, run.strikes) > run.recoveries:
        yield _finding(
            run, Invariant.SUSPECT,
            f"counts {run.crashes} crashes and {run.strikes} strikes, but was reclaimed only {run.recoveries} times",
            REPORT,
        )  # fmt: skip
    expected = (run.holder,) if run.status == "processing" and run.is_suspect else ()
    if run.noted_by != expected:
        suspect = "a suspect" if run.is_suspect else "not a suspect"
        noted = f"noted as the suspect of {', '.join(run.noted_by) or 'no process'}"
        yield _finding(
            run, Invariant.SUSPECT, f"has the status {run.status} and is {suspect}, but it is {noted}",
            _restart(run) if run.noted_by
            else "No action is needed. Until this run ends, its process may claim another suspect.",
        )  # fmt: skip


def _restart(run: Run) -> str:
    return f"Restart {', '.join(run.noted_by)}: a process claims no suspect while it has a note of one."


def _remains(run: Run) -> Iterator[Finding]:
    if run.has_ended:
        for kind in run.belongings:
            if not KINDS[kind].kept and kind != "mail":  # unanswered mail violates another invariant
                yield _finding(
                    run, Invariant.REMAINS, f"has ended, but its {_called(kind)} is still stored",
                    "No action is needed: it is harmless, and is removed together with the run.",
                )  # fmt: skip


def _called(kind: str) -> str:
    return KINDS[kind].called or kind


def _missing(run: Run) -> Iterator[Finding]:
    """There is no run with this id. So nothing of it may be left."""
    for kind, name in run.places:
        if kind not in ("ready", "ended"):  # a cancelled run leaves its entry in the queue until a claim skips it
            yield _finding(
                run, Invariant.CHILD if kind == "children" else Invariant.REMAINS,
                f"does not exist, but it is still {in_places([(kind, name)])}", REPORT,
            )  # fmt: skip
    for kind in run.belongings:
        yield _finding(
            run, Invariant.REMAINS, f"does not exist, but its {_called(kind)} is still stored",
            f"It is harmless. Delete it with {command('DEL', KEYS.key(kind, run.id))}.",
        )  # fmt: skip
    if run.noted_by:
        yield _finding(
            run, Invariant.SUSPECT, f"does not exist, but it is noted as the suspect of {', '.join(run.noted_by)}",
            _restart(run),
        )  # fmt: skip
