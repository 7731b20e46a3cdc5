"""The connections of an orchestrator: one to its namespace in each event loop that it is used in."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

from factorial._core.loop import close_with_loop
from factorial.config import EventsConfig, MetricsTimelineConfig, RedisConfig
from factorial.mailbox import Namespace
from factorial.mailbox.embedded.share import EmbeddedServer, resolve
from factorial.mailbox.transport.client import RedisClient, new_client

__all__ = ["Connections"]


class Connections:
    """Opens the namespace when an event loop first uses it, and closes it with that loop."""

    def __init__(self, redis: RedisConfig, events: EventsConfig, metrics: MetricsTimelineConfig) -> None:
        self._redis = redis
        self._events = events
        self._metrics = metrics
        self._server: EmbeddedServer | None = None
        self._opened: dict[asyncio.AbstractEventLoop, asyncio.Future[_Opened]] = {}

    async def namespace(self) -> Namespace:
        """The namespace of the running event loop."""
        loop = asyncio.get_running_loop()
        opened = self._opened.get(loop)
        if opened is None or (opened.done() and (opened.cancelled() or opened.exception())):
            opened = self._opened[loop] = asyncio.ensure_future(self._open())
        return (await asyncio.shield(opened)).namespace

    async def redis_client(self) -> RedisClient:
        """A redis-py client for the same server, with connections of its own."""
        return new_client((await self.namespace()).connection.endpoint.route)

    async def close(self) -> None:
        """Close the namespace of the running event loop, and release an embedded server."""
        if opened := self._opened.pop(asyncio.get_running_loop(), None):
            await asyncio.wait([opened])
            if not opened.cancelled() and opened.exception() is None:
                await opened.result().closer.aclose()
        if self._server is not None:
            server, self._server = self._server, None
            await asyncio.to_thread(server.release)

    async def _open(self) -> "_Opened":
        redis = self._redis
        if self._server is None:
            _, self._server = await asyncio.to_thread(resolve, redis.resolved_url)
        if self._server is not None:  # held here and not by a namespace, because it outlives event loops
            redis = replace(redis, url=self._server.url)
        namespace = await Namespace.open(redis, self._events, self._metrics)
        loop = asyncio.get_running_loop()

        async def close() -> None:
            self._opened.pop(loop, None)
            await namespace.close()

        return _Opened(namespace, await close_with_loop(close))


@dataclass(frozen=True, slots=True)
class _Opened:
    """The namespace of one event loop, and the generator that closes it: by `aclose`, or with the loop."""

    namespace: Namespace
    closer: AsyncGenerator[None, None]
