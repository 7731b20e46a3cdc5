"""The yardstick: redis-py's PING, one after the other, on one held connection."""

import time

from redis.asyncio import Redis

from benchmarks.report import Table
from benchmarks.stage import Stage

__all__ = ["measure", "ping_rate"]

_SECONDS = 0.5


async def ping_rate(stage: Stage) -> float:
    """PINGs per second. Measured anew beside each figure that is compared with it: a shared machine changes."""
    async with Redis.from_url(stage.url, single_connection_client=True) as redis:
        await redis.ping()
        count, begun = 0, time.perf_counter()
        while (passed := time.perf_counter() - begun) < _SECONDS:
            await redis.ping()
            count += 1
    return count / passed


async def measure(stage: Stage, table: Table) -> None:
    """Show it once on its own."""
    rate = await ping_rate(stage)
    table.title("yardstick: redis-py PING in sequence on one held connection")
    table.figure("rate", f"{rate:,.0f}/s", f"round trip {1000 / rate:.3f} ms")
