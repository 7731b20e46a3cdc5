"""Counts the runs in each place (`queues.lua`). Called by `status` and for metrics."""

from collections.abc import Iterable, Mapping

from factorial.mailbox.places import PLACES
from factorial.mailbox.script import Scripts, counted

__all__ = ["COUNTED", "PlaceCounts", "read_queues"]

PlaceCounts = Mapping[str, int]
"""How many runs of one agent are in each place, by `Place.column`, in the order of `COUNTED`."""
COUNTED = tuple(place for place in PLACES if place.column)


async def read_queues(scripts: Scripts, agents: Iterable[str]) -> dict[str, PlaceCounts]:
    """The counts of `agents`, and of all agents with a registered process, by name."""
    answer = await scripts.run("queues", *counted(sorted(set(agents))))
    return {agent.decode(): _counts(flat) for agent, flat in zip(answer[::2], answer[1::2], strict=True)}


def _counts(flat: list[bytes | int]) -> PlaceCounts:
    runs = {kind.decode(): int(count) for kind, count in zip(flat[::2], flat[1::2], strict=True)}  # type: ignore[union-attr]
    return {place.column: runs[place.kind] for place in COUNTED}
