"""The door to one namespace: its connection, its scripts, and the news of its events.

Opened by the orchestrator, by each worker process and by the supervisor. The operations, one per module of this
package, are functions of its `scripts`.
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
from factorial.mailbox.transport.connection import Connection
from factorial.mailbox.transport.listener import Listener
from factorial.mailbox.transport.server import check_server
from factorial.mailbox.views.subscription import EventFilter, Position, subscribe

__all__ = ["Namespace"]

_logger = logging.getLogger("factorial.mailbox")


class Namespace:
    """One namespace on one server. Make it with `await Namespace.open(...)`, and `close()` it."""

    def __init__(
        self, redis: RedisConfig, connection: Connection, scripts: Scripts, server: EmbeddedServer | None
    ) -> None:
        self.redis = redis
        """Where the server is; an embedded one by the address that it listens on."""
        self.connection = connection
        self.scripts = scripts
        self.keys: Keys = scripts.keys
        self._server = server
        self._listener: Listener | None = None
        self._opening_listener = asyncio.Lock()

    @classmethod
    async def open(
        cls,
        redis: RedisConfig,
        events: EventsConfig | None = None,
        metrics: MetricsTimelineConfig | None = None,
        *,
        patient: bool = False,
    ) -> Self:
        """Connect, and make sure that the server can be trusted with tasks.

        Raises `MailboxUnavailableError`, `MailboxRefusedError` that says what to change, and `ConfigError` for a URL
        that cannot be one. An `embedded:DIR` server is started if it does not run. `patient`: a server that is not
        there is waited for, `redis.retry_for` seconds long.
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
        """Close the connections; stop the embedded server if nobody else uses it."""
        if self._listener is not None:
            await self._listener.close()
        await self.connection.close()
        if self._server is not None:
            await asyncio.to_thread(self._server.release)

    async def release_process(self, process: str, cause: Cause = Cause.LEFT) -> lease.TakenBack:
        """Have others take over, at once, what the ended `process` held. Tells which runs that were.

        `cause` says how it ended, and so whether one of them may be at fault.
        """
        return await lease.bury(self.scripts, process=process, cause=cause)

    async def subscribe(
        self, owner_id: str, start: Position, wanted: EventFilter
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The owner's events from behind `start` on. All subscribers of this mailbox share one connection."""
        async with self._opening_listener:
            if self._listener is None:
                self._listener = await Listener.open(self.redis)
                self.connection.on_moved = self._listener.reconnect
        async with aclosing(subscribe(self.scripts, self._listener, owner_id, start, wanted)) as events:
            async for event in events:
                yield event


def _constants(events: EventsConfig, metrics: MetricsTimelineConfig) -> dict[str, int]:
    """The settings that the scripts know by name."""
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
        for warning in () if patient else warnings:  # the supervisor of a patient process has told already
            _logger.warning("%s", warning)
        keys = Keys(redis.namespace)
        await _check_namespace(connection, keys, redis.namespace, shown)
    except BaseException:
        await connection.close()
        raise
    return connection, Scripts(connection, keys, constants)


async def _check_namespace(connection: Connection, keys: Keys, namespace: str, shown: str) -> None:
    """Refuse a namespace that another release laid out in another way, and a user who may not tell of its events.

    Both are asked for in one write. The message reaches nobody: no owner has an empty id.
    """
    asked = connection.send("HGET", keys.layout, "version"), connection.send("PUBLISH", keys.channel(""), "")
    answers: tuple[Any, Any] = await asyncio.gather(*asked, return_exceptions=True)
    version, published = answers
    if isinstance(version, BaseException) and not isinstance(version, ResponseError):
        raise version
    if isinstance(published, MailboxRefusedError):
        raise MailboxRefusedError(
            f"{shown}: our user may not publish to the channels of namespace {namespace!r}, on which events are "
            f"told: ACL SETUSER USER +publish +subscribe &{keys.prefix}* (or allchannels)"
        )
    if isinstance(published, BaseException):
        raise published
    version = version or await connection.execute("HGET", keys.layout_1, "version")
    if version is None:
        await connection.execute("HSETNX", keys.layout, "version", LAYOUT_VERSION)
        version = await connection.execute("HGET", keys.layout, "version")
    check_layout(version, keys, f"namespace {namespace!r} at {shown}")
