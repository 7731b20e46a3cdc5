"""Asserts the invariants of every namespace on a server, after the test that used it. Everything is real.

It uses its own event loop, when those of the test and its fixtures are closed.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence

from factorial.config import RedisConfig
from factorial.errors import MailboxError
from factorial.mailbox.transport.connection import Connection
from tests.redis.doctor import assert_invariants

__all__ = ["ServerDoctor"]

_TAG = re.compile(rb"\{(.+):0\}:")


class ServerDoctor:
    """One for the whole test run. `close()` it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._kept: dict[str, Connection] = {}
        """Connections to servers that live as long as the test run. To open one takes longer than a check."""

    def check(self, url: str, namespace: str = "factorial", *, end_events: bool = True) -> None:
        """Fail with the findings about all namespaces on the server at `url`; on a cluster, on the node of `namespace`.

        `end_events`: see `assert_invariants`. A server that the test has stopped or locked is skipped.
        """

        async def assert_all(connection: Connection) -> None:
            for found in await _namespaces(connection):
                await _assert(connection, found, end_events)

        self._loop.run_until_complete(self._at(url, namespace, assert_all))

    def tidy(self, url: str, namespace: str = "factorial") -> None:
        """Remove all namespaces there, so that each test is charged with its own keys only."""
        self._loop.run_until_complete(self._at(url, namespace, _remove))

    async def _at(self, url: str, namespace: str, act: Callable[[Connection], Awaitable[None]]) -> None:
        if kept := self._kept.get(url):
            await act(kept)
            return
        try:
            connection = await Connection.open(RedisConfig(url=url, namespace=namespace, timeout=20, retry_for=20))
        except MailboxError:
            return
        if url.startswith("unix:"):  # the shared server; each namespace of a cluster has its own node
            self._kept[url] = connection
        try:
            await act(connection)
        finally:
            if url not in self._kept:
                await connection.close()

    def close(self) -> None:
        """Close its connections and its event loop."""
        for connection in self._kept.values():
            self._loop.run_until_complete(connection.close())
        self._loop.close()


async def _namespaces(connection: Connection) -> Mapping[str, Sequence[bytes]]:
    """The namespaces on the server, and their keys."""
    found: dict[str, list[bytes]] = defaultdict(list)
    cursor = b"0"
    while True:
        cursor, keys = await connection.execute("SCAN", cursor, "COUNT", 1000)
        for key in keys:
            if tag := _TAG.match(key):
                found[tag[1].decode()].append(key)
        if int(cursor) == 0:
            return found


async def _assert(connection: Connection, namespace: str, end_events: bool) -> None:
    try:
        await assert_invariants(connection, namespace, end_events=end_events)
    except AssertionError:  # a command may still have been on its way to the server when the test ended
        await asyncio.sleep(0.5)
        await assert_invariants(connection, namespace, end_events=end_events)


async def _remove(connection: Connection) -> None:
    for keys in (await _namespaces(connection)).values():  # one by one: on a cluster they are in different slots
        for first in range(0, len(keys), 1000):
            await connection.execute("UNLINK", *keys[first : first + 1000])
