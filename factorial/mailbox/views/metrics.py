"""What was counted, by agent and span of time (`timeline.lua`). Called by `get_metrics`; changes nothing.

The scripts count as they make the changes (`lib/metrics.lua`), so a count is neither lost nor repeated. A bucket is a
hash, named by its length, its time to be kept, its beginning and its agent; the key `timeline` lists the names.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypedDict

from factorial._core.text import iso
from factorial.config import MetricsTimelineConfig
from factorial.mailbox.script import Scripts
from factorial.mailbox.views.queues import Queue, read_queues

__all__ = ["AgentMetrics", "Bucket", "Counts", "InFlight", "Metrics", "read_metrics"]

_COUNTED = ("enqueued", "completed", "failed", "cancelled", "retried", "recovered")
_ENDS = ("completed", "failed", "cancelled")
_NOTHING = Queue(ready=0, throttled=0, suspects=0, backoff=0, parked=0, held=0)


class Counts(TypedDict):
    """What happened to the tasks of one agent in some span of time."""

    enqueued: int
    completed: int
    failed: int
    cancelled: int
    retried: int
    """Failed tries that were put back to be tried again."""
    recovered: int
    """Tasks that were taken back from a process that had died, and go on."""
    mean_duration: dict[str, float | None]
    """Seconds from enqueued to ended, for each of `completed`, `failed` and `cancelled`; None: there was none."""
    max_duration: dict[str, float | None]
    """The longest of these, in seconds."""


class Bucket(Counts):
    """What happened from `start` on, for `bucket_seconds`."""

    start: str
    """ISO 8601, in UTC."""


class InFlight(TypedDict):
    """How many tasks of one agent have not ended."""

    queued: int
    """To be taken up."""
    processing: int
    """Executed by some process."""
    backoff: int
    """To be tried again later."""
    parked: int
    """Awaiting results of deferred tools, or children; no process holds them."""


class AgentMetrics(TypedDict):
    """One agent."""

    now: InFlight
    totals: Counts
    """Of all the buckets."""
    buckets: list[Bucket]
    """In order, without a gap: the last one is under way."""


class Metrics(TypedDict):
    """What `get_metrics` gives: plain data, good as JSON."""

    at: str
    """When it was read, by the server's clock: ISO 8601, in UTC."""
    bucket_seconds: int
    """How long a bucket is: as in the settings, or longer if others have counted in longer ones."""
    agents: dict[str, AgentMetrics]


async def read_metrics(scripts: Scripts, timeline: MetricsTimelineConfig, agent: str | None = None) -> Metrics:
    """The metrics of `agent`, or of all agents that were counted lately or that some process works for."""
    now, length, first, *buckets = await scripts.run(
        "timeline", agent or "", timeline.timeline_duration, timeline.bucket_duration
    )
    length, first = int(length), int(first)
    starts = range(first, int(now) // 1000 + 1, length)
    counted: dict[str, dict[int, list[Mapping[str, int]]]] = {} if agent is None else {agent: {}}
    for name, start, flat in buckets:
        bucket = first + (int(start) - first) // length * length
        counted.setdefault(name.decode(), {}).setdefault(bucket, []).append(_paired(flat))
    queues = await read_queues(scripts, counted)
    return {
        "at": iso(datetime.fromtimestamp(int(now) / 1000, UTC)),
        "bucket_seconds": length,
        "agents": {
            name: _agent(counted.get(name, {}), queues.get(name, _NOTHING), starts)
            for name in sorted({*counted, *(queues if agent is None else ())})
        },
    }


def _paired(flat: Sequence[Any]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _agent(counted: Mapping[int, list[Mapping[str, int]]], queue: Queue, starts: range) -> AgentMetrics:
    return {
        "now": {
            "queued": queue.ready + queue.throttled + queue.suspects,
            "processing": queue.held,
            "backoff": queue.backoff,
            "parked": queue.parked,
        },
        "totals": _sum([part for parts in counted.values() for part in parts]),
        "buckets": [
            {"start": iso(datetime.fromtimestamp(start, UTC)), **_sum(counted.get(start, []))} for start in starts
        ],
    }


def _sum(parts: Sequence[Mapping[str, int]]) -> Counts:
    """Several buckets as one."""
    total = {what: sum(part.get(what, 0) for part in parts) for what in _COUNTED}
    mean: dict[str, float | None] = dict.fromkeys(_ENDS)
    longest: dict[str, float | None] = dict.fromkeys(_ENDS)
    for status in _ENDS:
        if total[status]:
            mean[status] = sum(part.get(f"{status}_ms", 0) for part in parts) / total[status] / 1000
            longest[status] = max(part.get(f"{status}_longest", 0) for part in parts) / 1000
    return {
        "enqueued": total["enqueued"],
        "completed": total["completed"],
        "failed": total["failed"],
        "cancelled": total["cancelled"],
        "retried": total["retried"],
        "recovered": total["recovered"],
        "mean_duration": mean,
        "max_duration": longest,
    }
