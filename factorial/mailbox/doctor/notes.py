"""What violates no invariant, but an operator should know."""

from collections import Counter
from collections.abc import Iterator

from factorial.mailbox.doctor.shared import Shared
from factorial.mailbox.doctor.tally import Tally
from factorial.mailbox.doctor.wording import plural

__all__ = ["notes_on", "served_agents"]


def served_agents(shared: Shared) -> set[str]:
    """The agents that a living process works for."""
    return {process.agent for process in shared.processes.values() if process.is_alive}


def notes_on(shared: Shared, tally: Tally, now: int) -> Iterator[str]:
    """One string each, of full sentences. `now`: in ms since 1970, by the server's clock."""
    served = served_agents(shared)
    for agent, queued in sorted(tally.queued.items()):
        if not (total := queued.total()):
            continue
        oldest = _span(max(0, now - tally.oldest[agent]) // 1000)
        advice = "" if agent in served else " No living process works for this agent: start its runner."
        yield f"Agent {agent} has {plural(total, 'ready run')}. The oldest was enqueued {oldest} ago.{advice}"
    for agent, errors in sorted(tally.deferred.items()):
        what = Counter(errors).most_common(1)[0][0]
        yield (
            f"Agent {agent} has {plural(len(errors), 'deferred run')}, which wait for something that is away and spend "
            f"no retries. The most frequent reason: {what}."
        )
    for process in sorted(shared.processes.values(), key=lambda one: one.name):
        if process.is_registered and not process.is_alive:
            yield (
                f"Process {process.name} has no lease. It holds {plural(process.held, 'run')}. If it is dead, the "
                "maintenance of any living process reclaims them."
            )
    if tally.without_deadline:
        yield (
            f"Parked runs that await something without a deadline: {tally.without_deadline}. Each stays parked until "
            "the result is delivered, the child ends or the task is cancelled."
        )
    if shared.doomed:
        yield (
            f"Runs that must still be cancelled, because their parents were: {shared.doomed}. The maintenance of any "
            "living process cancels them."
        )


def _span(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h" if seconds < 172_800 else f"{seconds // 86_400} days"
