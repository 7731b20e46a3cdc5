"""Reads counts of tasks by agent and span of time (`timeline.lua`). Called by `get_metrics`.

The scripts count in the same step as they change a run (`lib/metrics.lua`), so a count is neither lost nor repeated. A
bucket is a hash, named by its length, the time for which it is kept, its beginning and its agent. The key `timeline`
lists these names.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypedDict

from factorial._core.text import iso
from factorial.config import MetricsTimelineConfig
from factorial.mailbox.script import Scripts
from factorial.mailbox.views.queues import COUNTED, PlaceCounts, read_queues

__all__ = ["AgentMetrics", "Bucket", "Counts", "InFlight", "Metrics", "read_metrics"]

_COUNTED = ("enqueued", "completed", "failed", "cancelled", "retried", "recovered")
_ENDS = ("completed", "failed", "cancelled")


class Counts(TypedDict):
    """How many tasks of one agent were enqueued, ended, ... in a span of time."""

    enqueued: int
    completed: int
    failed: int
    cancelled: int
    retried: int
    """Failed attempts that are followed by another one."""
    recovered: int
    """Tasks that were reclaimed from a dead process, and go on."""
    mean_duration: dict[str, float | None]
    """Seconds from enqueueing to the end, for each of `completed`, `failed` and `cancelled`. None: no task ended so."""
    max_duration: dict[str, float | None]
    """The longest of these times, in seconds."""


class Bucket(Counts):
    """The counts of `bucket_seconds` seconds from `start` on."""

    start: str
    """ISO 8601, in UTC."""


class InFlight(TypedDict):
    """How many tasks of one agent have not ended, by state."""

    queued: int
    """Free to be claimed, throttled, or suspects."""
    processing: int
    """Held by a process."""
    backoff: int
    """Due later, for the next attempt."""
    parked: int
    """Awaiting results of deferred tools, or children; no process holds them."""


class AgentMetrics(TypedDict):
    """The metrics of one agent."""

    now: InFlight
    totals: Counts
    """The sums over all buckets."""
    buckets: list[Bucket]
    """In order, without gaps. The last one is the current one."""


class Metrics(TypedDict):
    """What `get_metrics` returns: plain data, fit for JSON."""

    at: str
    """The time of reading, by the server's clock: ISO 8601, in UTC."""
    bucket_seconds: int
    """The length of a bucket: that of the settings, or longer if another client counted in longer ones."""
    agents: dict[str, AgentMetrics]


async def read_metrics(scripts: Scripts, timeline: MetricsTimelineConfig, agent: str | None = None) -> Metrics:
    """The metrics of `agent`, or of all agents with recent counts or a registered process."""
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
            name: _agent(counted.get(name, {}), queues.get(name, {}), starts)
            for name in sorted({*counted, *(queues if agent is None else ())})
        },
    }


def _paired(flat: Sequence[Any]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _agent(counted: Mapping[int, list[Mapping[str, int]]], places: PlaceCounts, starts: range) -> AgentMetrics:
    return {
        "now": {
            "queued": _in_state("queued", places),
            "processing": _in_state("processing", places),
            "backoff": _in_state("backoff", places),
            "parked": _in_state("parked", places),
        },
        "totals": _sum([part for parts in counted.values() for part in parts]),
        "buckets": [
            {"start": iso(datetime.fromtimestamp(start, UTC)), **_sum(counted.get(start, []))} for start in starts
        ],
    }


def _in_state(state: str, places: PlaceCounts) -> int:
    return sum(places.get(place.column, 0) for place in COUNTED if place.state == state)


def _sum(parts: Sequence[Mapping[str, int]]) -> Counts:
    """The sum of several buckets."""
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
