"""Sums over many runs."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from factorial.mailbox.doctor.stored import Batch, Run
from factorial.mailbox.places import PARKED, PLACES

__all__ = ["Tally"]


@dataclass(slots=True)
class Tally:
    """Counts of many runs."""

    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By agent and status."""
    active: Counter[str] = field(default_factory=Counter)
    """By owner: runs that have not ended."""
    held: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By agent and owner."""
    throttled: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By agent and owner."""
    ready: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By agent and owner; queued suspects are included."""
    queued: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By agent: the numbers of 'ready' runs and of queued 'suspects'."""
    oldest: dict[str, int] = field(default_factory=dict)
    """By agent: when the oldest of these was enqueued, in ms since 1970."""
    batches: dict[str, Batch] = field(default_factory=lambda: defaultdict(Batch))
    deferred: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """By agent: why its runs are deferred, one error for each."""
    without_deadline: int = 0
    """Parked runs that await something without a deadline."""

    def add(self, run: Run) -> None:
        """Count a run."""
        whose = (run.agent, run.owner)
        self.statuses[run.agent, run.status] += 1
        if run.batch:
            batch = self.batches[run.batch]
            batch.runs += 1
            batch.ended_runs[run.status] += run.has_ended
        if run.has_ended:
            return
        self.active[run.owner] += 1
        if run.status == "processing":
            self.held[whose] += 1
        elif run.status == "queued":
            kinds = {kind for kind, _ in run.places}
            self.throttled[whose] += "throttled" in kinds
            for place in PLACES:
                if place.is_queue and place.kind in kinds:
                    self.ready[whose] += 1
                    self.queued[run.agent][place.kind] += 1
                    self.oldest[run.agent] = min(run.created_at, self.oldest.get(run.agent, run.created_at))
        elif run.status == "backoff" and run.deferred_at:
            self.deferred[run.agent].append(run.error)
        elif run.status in PARKED and "?0" in (run.awaits or {}).values():
            self.without_deadline += 1
