"""A short visit to a namespace, by who operates a system or looks at it.

Asks less than `Namespace.open`: a server in trouble is one that has to be operated. It writes nothing, and starts no
server. Called by `supervisor/operate/remote.py` and by `cli/doctor.py`.
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
from factorial.mailbox.transport.connection import Connection

__all__ = ["Visit", "visiting"]


@dataclass(frozen=True, slots=True)
class Visit:
    """A way to the mailboxes."""

    scripts: Scripts
    redis: RedisConfig
    place: str
    """Where we are looking, for messages."""


@asynccontextmanager
async def visiting(redis: RedisConfig) -> AsyncIterator[Visit]:
    """A connection for as long as the visit takes. Raises `MailboxError`."""
    url = redis.resolved_url
    place = f"namespace {redis.namespace!r} at {url if url.startswith('embedded:') else shown_url(url)}"
    if url.startswith("embedded:") and not await asyncio.to_thread(is_running, url):
        raise MailboxUnavailableError(
            f"nothing runs in {place}: its server is not running. Start the system: it starts its server"
        )
    url, server = await asyncio.to_thread(resolve, url)
    try:
        redis = replace(redis, url=url)
        connection = await Connection.open(redis)
        try:
            yield Visit(Scripts(connection, Keys(redis.namespace), {}), redis, place)
        finally:
            await connection.close()
    finally:
        if server is not None:
            await asyncio.to_thread(server.release)
