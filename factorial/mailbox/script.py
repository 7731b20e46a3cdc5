"""Loads the Lua scripts beside this file and runs them: one file, one atomic operation.

A script's text is the key names (`keys.lua_prelude`), the constants, and its file with the lines
`-- include: FILE` replaced by that file, each once. It is called by the digest of that text, so two releases
may run side by side; a server that does not know it yet is sent the text.

The file's first line gives the script's flags: what keeps running work alive is allowed when the server is out of
memory, what brings new work is not.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

from factorial.mailbox.connect import Commands
from factorial.mailbox.keys import Keys, lua_prelude

__all__ = ["Argument", "Scripts", "counted"]

Argument = bytes | str | int | float

_INCLUDE = re.compile(r"^-- include: (\S+)\n", re.MULTILINE)


def counted(items: Iterable[Argument]) -> list[Argument]:
    """A list as the scripts' `take_list` reads it: its length, then its items."""
    listed = list(items)
    return [len(listed), *listed]


@cache
def _source(name: str) -> str:
    """The text of the Lua file `name` with its includes in place, each at its first mention."""
    included: set[str] = set()

    def expand(file: str) -> str:
        if file in included:
            return ""
        included.add(file)
        text = files("factorial.mailbox").joinpath(file).read_text(encoding="utf-8")
        return _INCLUDE.sub(lambda found: expand(found[1]), text)

    return expand(f"{name}.lua")


class Scripts:
    """The scripts of one namespace, bound to a connection."""

    def __init__(self, commands: Commands, keys: Keys, constants: Mapping[str, int]) -> None:
        self.commands = commands
        self.keys = keys
        self._constants = "".join(f"local {name} = {value}\n" for name, value in constants.items())
        self._texts: dict[str, tuple[str, str]] = {}

    async def run(self, name: str, *args: Argument) -> Any:
        """Run the script `name` with `args` as its ARGV, and give its answer."""
        digest, text = self._texts.get(name) or self._load(name)
        try:
            return await self.commands.execute("EVALSHA", digest, 1, self.keys.prefix, *args)
        except NoScriptError:
            return await self.commands.execute("EVAL", text, 1, self.keys.prefix, *args)

    def _load(self, name: str) -> tuple[str, str]:
        flags, _, source = _source(name).partition("\n")
        text = f"{flags}\n{lua_prelude(source)}{self._constants}{source}"
        loaded = (hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), text)
        self._texts[name] = loaded
        return loaded
