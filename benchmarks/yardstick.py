"""The yardstick: sequential PINGs of redis-py on one connection."""

import time

from redis.asyncio import Redis

from benchmarks.report import Table
from benchmarks.stage import Stage

__all__ = ["measure", "ping_rate"]

_SECONDS = 0.5


async def ping_rate(stage: Stage) -> float:
    """PINGs per second, measured right before each figure that is compared with it, because a shared machine varies."""
    async with Redis.from_url(stage.url, single_connection_client=True) as redis:
        await redis.ping()
        count, started = 0, time.perf_counter()
        while (passed := time.perf_counter() - started) < _SECONDS:
            await redis.ping()
            count += 1
    return count / passed


async def measure(stage: Stage, table: Table) -> None:
    """Measure and print the rate alone."""
    rate = await ping_rate(stage)
    table.title("yardstick: sequential PINGs of redis-py on one connection")
    table.figure("rate", f"{rate:,.0f}/s", f"round trip {1000 / rate:.3f} ms")
