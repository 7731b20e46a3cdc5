"""Sums over many runs."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from factorial.mailbox.doctor.stored import PARKED, Batch, Run

__all__ = ["Tally"]


@dataclass(slots=True)
class Tally:
    """What many runs amount to."""

    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By agent and status."""
    active: Counter[str] = field(default_factory=Counter)
    """By owner: the runs that have not ended."""
    held: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By agent and owner."""
    throttled: Counter[tuple[str, str]] = field(default_factory=Counter)
    ready: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Suspects that wait are among them."""
    waiting: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By agent: 'ready' and 'suspects', and how many of each wait to be taken up."""
    oldest: dict[str, int] = field(default_factory=dict)
    """By agent: when the oldest of these was enqueued, in ms since 1970."""
    batches: dict[str, Batch] = field(default_factory=lambda: defaultdict(Batch))
    without_deadline: int = 0
    """Parked runs that wait, without a deadline, for something that has not come."""

    def add(self, run: Run, created: int) -> None:
        """One more run."""
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
            for kind in ("ready", "suspects"):
                if kind in kinds:
                    self.ready[whose] += 1
                    self.waiting[run.agent][kind] += 1
                    self.oldest[run.agent] = min(created, self.oldest.get(run.agent, created))
        elif run.status in PARKED and "?0" in (run.awaited or {}).values():
            self.without_deadline += 1
