"""Loads the Lua scripts of `operations/`, `views/` and `supervisors/` and runs them: one file, one atomic operation.

A script's text consists of the key names (`keys.lua_prelude`), the places, the constants, and its file. Each line
`-- include: FILE` is replaced by that file, once. A script is called by the digest of its text, so two releases may run
at the same time. If the server does not know the digest, the text is sent.

The first line of the file has the script's flags. A script that keeps tasks going may run when the server is out of
memory. A script that brings new work may not.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

from factorial.mailbox.keys import Keys, lua_prelude
from factorial.mailbox.places import lua_places
from factorial.mailbox.transport.commands import Commands

__all__ = ["Argument", "Scripts", "counted", "flattened", "paired"]

Argument = bytes | str | int | float

_FOLDERS = ("operations", "views", "supervisors")
_INCLUDE = re.compile(r"^-- include: (\S+)\n", re.MULTILINE)


def counted(items: Iterable[Argument]) -> list[Argument]:
    """A list as the scripts' `take_list` reads it: its length, then its items."""
    listed = list(items)
    return [len(listed), *listed]


def flattened(pairs: Mapping[str, bytes]) -> list[Argument]:
    """Name, value, name, value, ...: as `set_all` of the scripts reads a mapping."""
    return [part for pair in pairs.items() for part in pair]


def paired(flat: Iterable[bytes]) -> dict[str, bytes]:
    """The mapping that the server sent as name, value, name, value, ...

    A name that is not UTF-8 cannot be ours. It is decoded with replacement characters: it must not end the process.
    """
    items = iter(flat)
    return {name.decode(errors="replace"): value for name, value in zip(items, items, strict=True)}


@cache
def _source(name: str) -> str:
    """The text of the Lua file `name` with its includes in place, each at its first mention."""
    included: set[str] = set()

    def expand(file: str) -> str:
        if file in included:
            return ""
        included.add(file)
        return _INCLUDE.sub(lambda found: expand(found[1]), room.joinpath(file).read_text(encoding="utf-8"))

    room = files("factorial.mailbox")
    file = next(f"{folder}/{name}.lua" for folder in _FOLDERS if room.joinpath(folder, f"{name}.lua").is_file())
    return expand(file)


class Scripts:
    """The scripts of one namespace, bound to a connection."""

    def __init__(self, commands: Commands, keys: Keys, constants: Mapping[str, int]) -> None:
        self.commands = commands
        self.keys = keys
        self._constants = "".join(f"local {name} = {value}\n" for name, value in constants.items())
        self._texts: dict[str, tuple[str, str]] = {}

    async def run(self, name: str, *args: Argument) -> Any:
        """Run the script `name` with `args` as its ARGV, and return its answer."""
        digest, text = self._texts.get(name) or self._load(name)
        try:
            return await self.commands.execute("EVALSHA", digest, 1, self.keys.prefix, *args)
        except NoScriptError:
            return await self.commands.execute("EVAL", text, 1, self.keys.prefix, *args)

    def _load(self, name: str) -> tuple[str, str]:
        flags, _, source = _source(name).partition("\n")
        text = f"{flags}\n{lua_prelude(source, self.keys.database)}{lua_places(source)}{self._constants}{source}"
        loaded = (hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), text)
        self._texts[name] = loaded
        return loaded
