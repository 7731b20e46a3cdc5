"""Reads all that is stored in a namespace, for tests that compare it."""

from collections import defaultdict
from typing import Any

from factorial.mailbox.transport.commands import Commands

__all__ = ["Contents", "contents", "is_suspect"]

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


def is_suspect(run: dict[str, str]) -> bool:
    """Whether two or more processes crashed while they held the run, since its last recorded step."""
    return int(run.get("crashes", 0)) >= 2
