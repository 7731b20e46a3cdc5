"""Asks the server about a namespace: many questions at once, with commands that only read, and no scripts.

A server user that may only read is enough. Long values are read in pieces, so no command occupies the server for long.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from redis.exceptions import ResponseError

from factorial.mailbox.keys import KINDS, Keys
from factorial.mailbox.transport.commands import Commands

__all__ = ["Questions", "Reader", "in_pieces", "number", "pairs", "text"]

_PIECE = 500
"""The number of keys or members that one command or one write asks for."""
_LONG_PIECE = 10_000
"""The number of ids that one command asks for in a list or sorted set."""


class Reader:
    """Reads one namespace. A key of the wrong type reads as missing, and is added to `unreadable`."""

    def __init__(self, commands: Commands, keys: Keys) -> None:
        self.keys = keys
        self._commands = commands
        # A connection can issue commands without a coroutine for each.
        self._send: Callable[..., Awaitable[Any]] = getattr(commands, "send", commands.execute)
        self.unreadable: set[str] = set()
        """Keys of the wrong type."""

    async def ask(self, questions: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The replies to these commands. The second word of each is a key."""
        answers: list[Any] = []
        failure: Exception | None = None
        for answering, question in zip([self._send(*each) for each in questions], questions, strict=True):
            try:
                answers.append(await answering)
            except ResponseError as refused:
                if not str(refused).startswith("WRONGTYPE"):
                    failure = refused
                self.unreadable.add(str(question[1]))
                answers.append(None)
            except Exception as error:  # all replies are awaited, so that none is left with an unretrieved exception
                failure = error
        if failure is not None:
            raise failure
        return answers

    async def ask_of_all(self, kind: str, names: Iterable[str], command: str, *rest: Any) -> dict[str, Any]:
        """The replies to one command about each key of a kind, by the keys' names."""
        found: dict[str, Any] = {}
        for piece in in_pieces(names):
            answers = await self.ask([(command, self.keys.key(kind, name), *rest) for name in piece])
            found |= dict(zip(piece, answers, strict=True))
        return found

    async def names(self) -> AsyncIterator[list[tuple[str, str]]]:
        """The kind and name of each key of the namespace, in pieces. A key may be returned more than once."""
        cursor = b"0"
        while True:
            cursor, keys = await self._commands.execute(
                "SCAN", cursor, "MATCH", f"{self.keys.prefix}*", "COUNT", 2 * _PIECE
            )
            parsed = (self.keys.parse(text(key)) for key in keys)
            yield [(kind, name) for kind, name in parsed if kind]
            if int(cursor) == 0:
                return

    async def members(self, kind: str, name: str) -> AsyncIterator[list[str]]:
        """The ids in a list, set or sorted set, in pieces. If it changes meanwhile, an id may be returned twice."""
        key = self.keys.key(kind, name)
        if KINDS[kind].type == "SET":
            cursor = b"0"
            while True:
                [answer] = await self.ask([("SSCAN", key, cursor, "COUNT", _PIECE)])
                cursor, ids = answer or (b"0", [])
                yield [text(id) for id in ids]
                if int(cursor) == 0:
                    return
        # Read from the end: pushing and popping at the front does not move the ids that are still to be read.
        command, end = ("ZRANGE" if KINDS[kind].type == "ZSET" else "LRANGE"), -1
        while True:
            [ids] = await self.ask([(command, key, end - _LONG_PIECE + 1, end)])
            yield [text(id) for id in ids or ()]
            if not ids or len(ids) < _LONG_PIECE:
                return
            end -= _LONG_PIECE


class Questions:
    """Questions that are sent to the server together, each with a function that takes its reply."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._asked: list[tuple[Callable[[Any], None], tuple[Any, ...]]] = []

    def ask(self, use: Callable[[Any], None], *question: Any) -> None:
        """Add a command. `send` will call `use` with its reply."""
        self._asked.append((use, question))

    async def send(self) -> None:
        """Send all commands, some at a time."""
        for first in range(0, len(self._asked), 4 * _PIECE):
            piece = self._asked[first : first + 4 * _PIECE]
            for (use, _), answer in zip(piece, await self._reader.ask([each for _, each in piece]), strict=True):
                use(answer)


def in_pieces(ids: Iterable[str]) -> Iterator[list[str]]:
    """The ids, in lists that one write can ask for."""
    left = iter(ids)
    while piece := list(islice(left, _PIECE)):
        yield piece


def text(value: bytes | str | None) -> str:
    """A stored value as text. Bytes that are not UTF-8 are replaced."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


def number(value: bytes | str | None) -> int:
    """A stored value as an integer; 0 if it is not one."""
    try:
        return int(value or 0)
    except ValueError:
        return 0


def pairs(flat: Iterable[Any]) -> Iterable[tuple[Any, Any]]:
    """The pairs in a flat list of names and values."""
    items = iter(flat)
    return zip(items, items, strict=True)
