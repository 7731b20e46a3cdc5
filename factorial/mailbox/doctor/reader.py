"""Asks the server about a namespace: many things at once, with commands that only read, and no script.

So the server is never held up, and a user of the server who may only read will do. What is long is read in pieces.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from redis.exceptions import ResponseError

from factorial.mailbox.keys import Keys
from factorial.mailbox.transport.commands import Commands

__all__ = ["Questions", "Reader", "number", "pairs", "text"]

_PIECE = 500
"""How many keys, members or events one command asks for."""
_LONG_PIECE = 10_000
"""The same, for lists of ids."""


class Reader:
    """Asks the server many things at once. What is of another type than it should be reads as nothing, and is noted."""

    def __init__(self, commands: Commands, keys: Keys) -> None:
        self._commands = commands
        self._keys = keys
        # A connection issues commands without a coroutine for each.
        self._send: Callable[..., Awaitable[Any]] = getattr(commands, "send", commands.execute)
        self.unreadable: set[str] = set()
        """Keys whose type is not theirs."""

    async def ask(self, questions: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The answers to these commands, whose second word is a key."""
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
            except Exception as error:  # all are awaited, so that none is left behind with an exception of its own
                failure = error
        if failure is not None:
            raise failure
        return answers

    async def ask_of_all(self, kind: str, names: Iterable[str], command: str, *rest: Any) -> dict[str, Any]:
        """The answers to one command about the keys of a kind, by their names."""
        wanted, found = iter(names), dict[str, Any]()
        while piece := list(islice(wanted, _PIECE)):
            answers = await self.ask([(command, self._keys.key(kind, name), *rest) for name in piece])
            found |= dict(zip(piece, answers, strict=True))
        return found

    async def names(self) -> AsyncIterator[list[tuple[str, str]]]:
        """The kind and the name of each key of the namespace, in pieces. One may come more than once."""
        cursor = b"0"
        while True:
            cursor, keys = await self._commands.execute(
                "SCAN", cursor, "MATCH", f"{self._keys.prefix}*", "COUNT", 2 * _PIECE
            )
            parsed = (self._keys.parse(text(key)) for key in keys)
            yield [(kind, name) for kind, name in parsed if kind]
            if int(cursor) == 0:
                return

    async def members(self, kind: str, name: str) -> AsyncIterator[list[str]]:
        """The ids in a list, a set or a sorted set, in pieces. One may come more than once, while it changes."""
        key = self._keys.key(kind, name)
        if kind in ("children", "parked", "held"):
            cursor = b"0"
            while True:
                [answer] = await self.ask([("SSCAN", key, cursor, "COUNT", _PIECE)])
                cursor, ids = answer or (b"0", [])
                yield [text(id) for id in ids]
                if int(cursor) == 0:
                    return
        # From the end: what is taken from the front, and put there, moves nothing that is still to be read.
        command, end = ("ZRANGE" if kind in ("due", "throttled") else "LRANGE"), -1
        while True:
            [ids] = await self.ask([(command, key, end - _LONG_PIECE + 1, end)])
            yield [text(id) for id in ids or ()]
            if not ids or len(ids) < _LONG_PIECE:
                return
            end -= _LONG_PIECE


class Questions:
    """Many questions that go to the server together, each with what is to be done with its answer."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._asked: list[tuple[Callable[[Any], None], tuple[Any, ...]]] = []

    def ask(self, use: Callable[[Any], None], *question: Any) -> None:
        self._asked.append((use, question))

    async def answered(self) -> None:
        """Ask them, some at a time."""
        for first in range(0, len(self._asked), 4 * _PIECE):
            piece = self._asked[first : first + 4 * _PIECE]
            for (use, _), answer in zip(piece, await self._reader.ask([each for _, each in piece]), strict=True):
                use(answer)


def text(value: bytes | str | None) -> str:
    """What is stored, as text; what is no UTF-8 is shown as such."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


def number(value: bytes | str | None) -> int:
    """What is stored, as a number; 0 for what is none."""
    try:
        return int(value or 0)
    except ValueError:
        return 0


def pairs(flat: Iterable[Any]) -> Iterable[tuple[Any, Any]]:
    """Name and value, name and value, ..."""
    items = iter(flat)
    return zip(items, items, strict=True)
