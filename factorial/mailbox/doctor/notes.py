"""What is no violation, and worth knowing at night."""

from collections.abc import Iterator

from factorial.mailbox.doctor.shared import Shared
from factorial.mailbox.doctor.tally import Tally

__all__ = ["notes_on", "served_agents"]


def served_agents(shared: Shared) -> set[str]:
    """The agents that a living process works for."""
    return {process.agent for process in shared.processes.values() if process.is_alive}


def notes_on(shared: Shared, tally: Tally, now: int) -> Iterator[str]:
    """A line each. `now`: in ms since 1970, by the server's clock."""
    served = served_agents(shared)
    for agent, waiting in sorted(tally.waiting.items()):
        if not (total := waiting.total()):
            continue
        oldest = _span(max(0, now - tally.oldest[agent]) // 1000)
        nobody = "" if agent in served else "; no living process works for it: start its runner"
        yield f"ready runs of agent {agent}: {total}, the oldest enqueued {oldest} ago{nobody}"
    for process in sorted(shared.processes.values(), key=lambda one: one.name):
        if process.is_registered and not process.is_alive:
            yield (
                f"process {process.name} has no lease; runs that it holds: {process.held}. If it is dead, maintenance "
                "of any living process takes them back"
            )
    if tally.without_deadline:
        yield f"runs that wait, without a deadline, for what has not come: {tally.without_deadline}"
    if shared.doomed:
        yield f"runs still to be cancelled together with those that spawned them: {shared.doomed}; maintenance does it"


def _span(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h" if seconds < 172_800 else f"{seconds // 86_400} days"
