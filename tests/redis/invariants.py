"""Asserts what must be true of a namespace at any moment, with the rules that the user's own check has
(`factorial/mailbox/checkup/invariants.py`, which names them); and reads all that is stored, for tests that compare it.
"""

from collections import defaultdict
from typing import Any

from factorial.mailbox.doctor import check
from factorial.mailbox.keys import Keys
from factorial.mailbox.transport.commands import Commands

__all__ = ["assert_invariants", "contents", "is_suspect"]

Contents = dict[str, dict[str, Any]]


async def contents(commands: Commands, namespace: str) -> Contents:
    """Everything that is stored in `namespace`: {kind of key: {name: value}}, as text, and without times to live."""
    prefix = f"{{{namespace}:0}}:"
    found: Contents = defaultdict(dict)
    cursor = b"0"
    while True:
        cursor, keys = await commands.execute("SCAN", cursor, "MATCH", f"{prefix}*", "COUNT", 1000)
        for key in keys:
            kind, _, name = key.decode().removeprefix(prefix).partition(":")
            if (value := await _value(commands, key)) is not None:
                found[kind][name] = value
        if int(cursor) == 0:
            return found


async def _value(commands: Commands, key: bytes) -> Any:
    match await commands.execute("TYPE", key):
        case b"string":
            return await commands.execute("GET", key)
        case b"list":
            return [item.decode() for item in await commands.execute("LRANGE", key, 0, -1)]
        case b"set":
            return {item.decode() for item in await commands.execute("SMEMBERS", key)}
        case b"hash":
            return _paired(await commands.execute("HGETALL", key))
        case b"zset":
            return _paired(await commands.execute("ZRANGE", key, 0, -1, "WITHSCORES"))
        case b"stream":
            return await commands.execute("XRANGE", key, "-", "+")
        case b"none":  # its time to live was over just now
            return None
        case other:
            raise AssertionError(f"{key!r} is of an unknown type: {other!r}")


def _paired(flat: list[bytes]) -> dict[str, str]:
    items = iter(item.decode() for item in flat)
    return dict(zip(items, items, strict=True))


async def assert_invariants(commands: Commands, namespace: str, *, quiet: bool = False, told: bool = True) -> None:
    """Fail with a list of what is wrong in `namespace`, in which nothing moves.

    `quiet`: nor was anything broken off, so that a wake token is there wherever something is ready. `told`: the end of
    each run is an event, as it is unless a test makes commits by hand.
    """
    checkup = await check(commands, Keys(namespace), still=True, tokens=quiet, events=told)
    assert not checkup.findings, "\n".join(map(str, checkup.findings))


def is_suspect(run: dict[str, str]) -> bool:
    """Whether two or more processes crashed while they held the run, since it last finished a step."""
    return int(run.get("crashes", 0)) >= 2
