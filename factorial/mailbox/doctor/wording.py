"""How findings write commands, keys, numbers and places."""

import shlex
from collections.abc import Iterable

from factorial.mailbox.doctor.stored import PLACES, Place

__all__ = ["command", "in_places", "plural"]


def command(*words: object) -> str:
    """A command as it is typed after `redis-cli` or `valkey-cli`, in backticks."""
    return f"`{shlex.join(map(str, words))}`"


def plural(count: int, noun: str) -> str:
    """'1 run', '2 runs'."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def in_places(places: Iterable[Place], link: str = " and ") -> str:
    """'in the ready queue of agent a and in the runs held by process p'; 'in no place'."""
    return link.join(f"in {PLACES[kind].format(name)}" for kind, name in places) or "in no place"
