"""A short connection to a namespace, for commands that operate a system or look at it.

It requires less of the server than `Namespace.open`, because a server in trouble must be operated, too. It writes
nothing, and starts no server. Used by `supervisor/operate/remote.py` and by `cli/doctor.py`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from factorial._core.redact import shown_url
from factorial.config import RedisConfig
from factorial.errors import MailboxUnavailableError
from factorial.mailbox.embedded.share import is_running, resolve
from factorial.mailbox.keys import Keys
from factorial.mailbox.script import Scripts
from factorial.mailbox.transport.address import database_of
from factorial.mailbox.transport.connection import Connection
from factorial.mailbox.transport.server import check_version

__all__ = ["Visit", "visiting"]


@dataclass(frozen=True, slots=True)
class Visit:
    """An open connection, for as long as the command takes."""

    scripts: Scripts
    redis: RedisConfig
    place: str
    """Namespace and server, for messages."""


@asynccontextmanager
async def visiting(redis: RedisConfig) -> AsyncIterator[Visit]:
    """Connect to the namespace for the duration of the block. Raises `MailboxError`."""
    url = redis.resolved_url
    place = f"namespace {redis.namespace!r} at {url if url.startswith('embedded:') else shown_url(url)}"
    if url.startswith("embedded:") and not await asyncio.to_thread(is_running, url):
        raise MailboxUnavailableError(
            f"nothing runs in {place}: its server is not running. Start the system, which starts the server"
        )
    url, server = await asyncio.to_thread(resolve, url)
    try:
        redis = replace(redis, url=url)
        connection = await Connection.open(redis)
        try:
            await check_version(connection, url_shown=place)
            keys = Keys(redis.namespace, database_of(redis.url))
            yield Visit(Scripts(connection, keys, {}), redis, place)
        finally:
            await connection.close()
    finally:
        if server is not None:
            await asyncio.to_thread(server.release)
