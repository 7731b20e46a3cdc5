"""How findings write commands, keys, numbers and places."""

import shlex
from collections.abc import Iterable

from factorial.mailbox.doctor.stored import PlacedAt
from factorial.mailbox.places import PLACES

__all__ = ["command", "in_places", "plural"]

_CALLED = {place.kind: place.called for place in PLACES} | {"children": "the list of children of run {}"}


def command(*words: object) -> str:
    """A command as it is typed after `redis-cli` or `valkey-cli`, in backticks."""
    return f"`{shlex.join(map(str, words))}`"


def plural(count: int, noun: str) -> str:
    """'1 run', '2 runs'."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def in_places(places: Iterable[PlacedAt], link: str = " and ") -> str:
    """'in the ready queue of agent a and in the runs held by process p'; 'in no place'."""
    return link.join(f"in {_CALLED[kind].format(name)}" for kind, name in places) or "in no place"
