"""`Namespace`: the connection to one namespace, its scripts, and subscriptions to its events.

Opened by the orchestrator, by each worker process and by the supervisor. The functions in `operations/`, `views/` and
`supervisors/` take its `scripts`.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Self

from redis.exceptions import ResponseError

from factorial._core.redact import shown_url
from factorial.config import EventsConfig, MetricsTimelineConfig, RedisConfig
from factorial.errors import MailboxRefusedError
from factorial.mailbox.embedded.share import EmbeddedServer, resolve
from factorial.mailbox.keys import LAYOUT_VERSION, Keys
from factorial.mailbox.layout import check_layout
from factorial.mailbox.operations import lease
from factorial.mailbox.operations.lease import Cause
from factorial.mailbox.script import Scripts
from factorial.mailbox.transport.address import database_of
from factorial.mailbox.transport.connection import Connection
from factorial.mailbox.transport.listener import Listener
from factorial.mailbox.transport.server import check_server
from factorial.mailbox.views.subscription import EventFilter, Position, subscribe

__all__ = ["Namespace"]

_logger = logging.getLogger("factorial.mailbox")


class Namespace:
    """A connection to one namespace on one server. Made by `await Namespace.open(...)`, ended by `close()`."""

    def __init__(
        self, redis: RedisConfig, connection: Connection, scripts: Scripts, server: EmbeddedServer | None
    ) -> None:
        self.redis = redis
        """The server and the namespace. The URL of an embedded server is the address on which it listens."""
        self.connection = connection
        self.scripts = scripts
        self.keys: Keys = scripts.keys
        self._server = server
        self._listener: Listener | None = None
        self._opening_listener = asyncio.Lock()
        self.is_closed: bool = False
        """Whether `close` was called."""

    @classmethod
    async def open(
        cls,
        redis: RedisConfig,
        events: EventsConfig | None = None,
        metrics: MetricsTimelineConfig | None = None,
        *,
        patient: bool = False,
    ) -> Self:
        """Connect, and check that the server keeps what it is given.

        An `embedded:DIR` server is started if it does not run. `patient`: if the server cannot be reached, wait for it
        for `redis.retry_for` seconds. Raises `MailboxUnavailableError`, `MailboxRefusedError` with what to change, and
        `ConfigError` for a malformed URL.
        """
        url, server = await asyncio.to_thread(resolve, redis.resolved_url)
        redis = replace(redis, url=url)
        try:
            constants = _constants(events or EventsConfig(), metrics or MetricsTimelineConfig())
            return cls(redis, *await _connect(redis, constants, patient), server)
        except BaseException:
            if server is not None:
                await asyncio.to_thread(server.release)
            raise

    async def close(self) -> None:
        """Close the connections, and stop the embedded server if no other process uses it. Subscriptions end."""
        self.is_closed = True
        if self._listener is not None:
            await self._listener.close()
        await self.connection.close()
        if self._server is not None:
            await asyncio.to_thread(self._server.release)

    async def reclaim_process(self, process: str, cause: Cause = Cause.LEFT) -> lease.Reclaimed:
        """Reclaim at once the runs of `process`, which has ended by `cause`."""
        return await lease.reclaim_process(self.scripts, process=process, cause=cause)

    async def subscribe(
        self, owner_id: str, start: Position, wanted: EventFilter
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The owner's events after `start`, as they happen. All subscriptions of a `Namespace` share a connection.

        The iteration ends when the namespace is closed, or raises `MailboxUnavailableError` if it was waiting for the
        server just then.
        """
        async with self._opening_listener:
            if self._listener is None:
                self._listener = await Listener.open(self.redis)
                self.connection.on_moved = self._listener.reconnect
            if self.is_closed:
                await self._listener.close()
        async with aclosing(subscribe(self.scripts, self._listener, owner_id, start, wanted)) as events:
            async for event in events:
                yield event


def _constants(events: EventsConfig, metrics: MetricsTimelineConfig) -> dict[str, int]:
    """The settings that the scripts use, by their names in Lua."""
    return {
        "EVENTS_MAX": events.max_per_owner,
        "EVENTS_TTL_MS": round(events.ttl * 1000),
        "METRICS_BUCKET": metrics.bucket_duration,
        "METRICS_RETENTION": metrics.retention_duration,
    }


async def _connect(redis: RedisConfig, constants: dict[str, int], patient: bool) -> tuple[Connection, Scripts]:
    connection = await Connection.open(redis, patient=patient)
    try:
        shown = shown_url(redis.url)
        warnings = await check_server(connection, url_shown=shown)
        for warning in () if patient else warnings:  # the supervisor of a patient process has logged them
            _logger.warning("%s", warning)
        keys = Keys(redis.namespace, database_of(redis.resolved_url))
        await _check_namespace(connection, keys, redis.namespace, shown)
    except BaseException:
        await connection.close()
        raise
    return connection, Scripts(connection, keys, constants)


async def _check_namespace(connection: Connection, keys: Keys, namespace: str, shown: str) -> None:
    """Refuse a namespace with another layout, and a user of the server who may not publish its events.

    Both questions go out in one write. The published message has no subscribers: no owner has an empty id.
    """
    asked = connection.send("HGET", keys.layout, "version"), connection.send("PUBLISH", keys.channel(""), "")
    answers: tuple[Any, Any] = await asyncio.gather(*asked, return_exceptions=True)
    version, published = answers
    if isinstance(version, BaseException) and not isinstance(version, ResponseError):
        raise version
    if isinstance(published, MailboxRefusedError):
        raise MailboxRefusedError(
            f"{shown}: our user may not publish to the channels of namespace {namespace!r}, which carry the events: "
            f"ACL SETUSER USER +publish +subscribe &{keys.prefix}* (or allchannels)"
        )
    if isinstance(published, BaseException):
        raise published
    version = version or await connection.execute("HGET", keys.layout_1, "version")
    if version is None:
        await connection.execute("HSETNX", keys.layout, "version", LAYOUT_VERSION)
        version = await connection.execute("HGET", keys.layout, "version")
    check_layout(version, keys, f"namespace {namespace!r} at {shown}")
