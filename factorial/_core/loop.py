"""Closes resources together with the event loop that they belong to.

A connection belongs to one event loop, and a program may call `asyncio.run` several times. `asyncio.run` closes the
loop's async generators before it closes the loop, so a generator can close a connection in time.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable

__all__ = ["close_with_loop"]

_waiting: set[AsyncGenerator[None, None]] = set()


async def close_with_loop(close: Callable[[], Awaitable[object]]) -> AsyncGenerator[None, None]:
    """Call `close` before the running event loop ends, or earlier: when the returned generator is closed."""

    async def wait_for_the_end() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            _waiting.discard(waiting)
            await close()

    waiting = wait_for_the_end()
    await anext(waiting)
    _waiting.add(waiting)  # a generator without a reference is closed at once
    return waiting
