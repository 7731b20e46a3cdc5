"""The rules about more than one run: owners, batches, agents and processes. Pure.

`KEYS` is a namespace without a name: see `invariants.HERE`.
"""

from collections.abc import Iterator

from factorial.mailbox.doctor.invariants import KEYS, REPORT, Finding, Invariant
from factorial.mailbox.doctor.stored import Batch, Process
from factorial.mailbox.doctor.wording import command, plural

__all__ = ["about_batch", "about_count", "about_process", "about_running", "about_throttled", "about_wake"]


def about_count(owner: str, active: int, stored: int | None) -> Iterator[Finding]:
    """`active`: the number of the owner's runs that have not ended. `stored`: the stored count; None: there is none."""
    if active != (stored or 0):
        count = "no count is stored" if stored is None else f"the stored count is {stored}"
        yield Finding(
            Invariant.COUNT,
            f"owner {owner}",
            f"Owner {owner} has {plural(active, 'active run')}, but {count}.",
            "No task is affected. A subscription that starts without a position may start at the wrong event.",
        )


def about_running(agent: str, owner: str, held: int, stored: int) -> Iterator[Finding]:
    """`held`: the number of the owner's runs of the agent that processes hold. `stored`: the stored count."""
    if held != stored:
        effect = "fewer of these runs at the same time than it allows" if stored > held else "more than it allows"
        key = KEYS.key("running", agent)
        correction = command("HSET", key, owner, held) if held else command("HDEL", key, owner)
        yield Finding(
            Invariant.COUNT,
            f"owner {owner}",
            f"Owner {owner} has {plural(held, 'held run')} of agent {agent}, but the stored count is {stored}.",
            f"An owner limit admits {effect}. Correct the count with {correction} at a moment when none of these runs "
            f"is being claimed. {REPORT}",
        )


def about_throttled(agent: str, owner: str, throttled: int) -> Iterator[Finding]:
    """`throttled`: the number of the owner's throttled runs of the agent, if none of its runs is held or ready."""
    if throttled:
        yield Finding(
            Invariant.WAKE,
            f"owner {owner}",
            f"Owner {owner} has {plural(throttled, 'throttled run')} of agent {agent}, but no ready or held run whose "
            "end would make one of them ready.",
            f"Delete the count with {command('HDEL', KEYS.key('running', agent), owner)}, and then enqueue another "
            "task of this owner and agent. When it ends, the next throttled run becomes ready.",
        )


def about_wake(agent: str, ready: int, suspects: int, *, has_token: bool, passed: int) -> Iterator[Finding]:
    """`ready`, `suspects`: the numbers of queued runs. `passed`: the number of processes that passed the token on."""
    fix = (
        "No action is needed if a worker has a free slot: it looks for ready runs every few seconds. The next task "
        "that is enqueued adds a token."
    )
    if ready and not has_token:
        text = f"Agent {agent} has {plural(ready, 'ready run')}, but no wake token."
    elif suspects and not has_token and not passed:
        text = (
            f"Agent {agent} has {plural(suspects, 'queued suspect')}, but no wake token, and no process passed one on."
        )
    else:
        return
    yield Finding(Invariant.WAKE, f"agent {agent}", text, fix)


def about_process(name: str, agent: str, process: Process | None) -> Iterator[Finding]:
    """What is wrong with a process that has passed a wake token of the agent on."""
    if process is None or not process.suspect:
        yield Finding(
            Invariant.SUSPECT,
            f"process {name}",
            f"Process {name} passed a wake token of agent {agent} on, but it holds no suspect.",
            "No action is needed: the next crash or success of a suspect of this agent corrects it.",
        )


def about_batch(name: str, batch: Batch) -> Iterator[Finding]:
    """What a batch counts, compared with its stored runs."""
    ended = batch.ended_runs.total()
    missing = batch.total - batch.runs  # removed, or not spawned yet
    if not 0 <= batch.ended - ended <= missing or batch.active != batch.runs - ended:
        yield Finding(
            Invariant.CHILD,
            f"batch {name}",
            f"Batch {name} counts {plural(batch.total, 'run')}, {batch.ended} of them ended and {batch.active} active, "
            f"but it has {plural(batch.runs, 'stored run')}, {ended} of them ended.",
            "No task is affected: its parent is notified of each child's end nevertheless. The batch's events report a "
            "wrong progress.",
        )
