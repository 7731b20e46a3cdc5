"""Checks a namespace against its invariants, while the system works. Changes nothing.

    first pass   reads every key and every run once; each run that looks wrong is a candidate
    rereading    reads the candidates again, several times; what is wrong each time, in the same way and with the same
                 state of the run (`Run.state`), is a finding
    sums         counts the runs of each owner and batch whose stored count looks wrong, if it does not change meanwhile

Why a finding is never a false alarm: a run never has the same state twice. If two reads return the same state, the run
did not change between them. The second read fetches all places of the run after the first read of its state and before
the second one. A run that changes between reads is skipped: it is alive.

Kept in memory: the ids of all runs, the positions of ready and held runs, and the stored events that end a run.

Called by `python -m factorial doctor`, and after every test that uses Redis.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from factorial.mailbox.doctor.first_pass import Candidates, read_everything
from factorial.mailbox.doctor.invariants import HERE, Finding, Invariant
from factorial.mailbox.doctor.notes import notes_on
from factorial.mailbox.doctor.reader import Reader
from factorial.mailbox.doctor.rereading import confirmed_processes, confirmed_runs
from factorial.mailbox.doctor.shared import read_ends, read_shared
from factorial.mailbox.doctor.sums import confirmed_held_counts, confirmed_sums
from factorial.mailbox.doctor.wake import confirmed_without_token
from factorial.mailbox.doctor.wording import command
from factorial.mailbox.keys import Keys
from factorial.mailbox.places import BY_KIND
from factorial.mailbox.transport.commands import Commands

__all__ = ["DoctorReport", "check_namespace"]


@dataclass(slots=True)
class DoctorReport:
    """What a check has found."""

    findings: list[Finding]
    """The violations, ordered by invariant and subject."""
    notes: list[str]
    """Sentences about what violates nothing, but an operator should know."""
    statuses: dict[str, dict[str, int]]
    """The number of runs by agent and status."""
    owners: int
    """The number of owners with runs that have not ended."""
    alive: int
    """The number of processes with a lease."""
    missing: int
    """The number of registered processes without a lease."""
    reread: int
    """The number of runs that looked wrong in the first pass."""


async def check_namespace(
    commands: Commands, keys: Keys, *, events: bool = True, still: bool = False, tokens: bool = True
) -> DoctorReport:
    """Check a namespace.

    `events`: read the stored events, too, which takes longest. `still`: nothing changes meanwhile, so everything is
    read once only. `tokens`: look for missing wake tokens. A token is missing for some seconds after the death of a
    process that had taken it.
    """
    reader, candidates = Reader(commands, keys), Candidates()
    shared = await read_shared(reader)
    if events:
        await read_ends(reader, shared, shared.names["events"])
    tally = await read_everything(reader, shared, candidates)
    findings = [
        *await confirmed_runs(reader, shared, candidates, still=still),
        *await confirmed_sums(reader, shared, tally, still=still),
        *await confirmed_held_counts(reader, shared, tally, still=still),
        *await confirmed_processes(reader, shared, still=still),
        *(await confirmed_without_token(reader, shared, tally, still=still) if tokens else ()),
        *_overwritten(reader),
    ]
    statuses: dict[str, dict[str, int]] = defaultdict(dict)
    for (agent, status), count in sorted(tally.statuses.items()):
        statuses[agent][status] = count
    processes = shared.processes.values()
    return DoctorReport(
        findings=[
            replace(finding, fix=finding.fix.replace(HERE, keys.prefix))
            for finding in sorted(findings, key=lambda one: (one.invariant, one.subject))
        ],
        notes=[*notes_on(shared, tally, await _now(commands)), *_omitted(candidates)],
        statuses=dict(statuses),
        owners=len(tally.active),
        alive=sum(process.is_alive for process in processes),
        missing=sum(process.is_registered and not process.is_alive for process in processes),
        reread=len(candidates.runs) + candidates.omitted,
    )


async def _now(commands: Commands) -> int:
    """The server's clock, in ms since 1970."""
    seconds, microseconds = await commands.execute("TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000


def _overwritten(reader: Reader) -> Iterator[Finding]:
    """Keys of the namespace whose type is not theirs."""
    for key in sorted(reader.unreadable):
        kind, name = reader.keys.parse(key)
        what = f"the key {kind!r} of {name}" if name else f"the key {kind!r}"
        yield Finding(
            Invariant.PLACE if kind in BY_KIND or kind == "children" else Invariant.REMAINS,
            f"key {key}",
            f"Key {key} has another type than {what} must have: something else has overwritten it.",
            f"Find out which program writes there. Then delete the key with {command('DEL', key)}, and run the doctor "
            "again: it reports what was in the key and is missing now.",
        )


def _omitted(candidates: Candidates) -> Iterator[str]:
    if candidates.omitted:
        yield (
            f"{candidates.omitted} more runs look wrong, and were not read again, because there are too many. Fix the "
            "violations above first, and run the doctor again."
        )
