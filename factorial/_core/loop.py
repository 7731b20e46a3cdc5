"""What belongs to an event loop and should end with it.

Connections live in one event loop; programs call `asyncio.run` as often as they like. `asyncio.run` ends the loop's
async generators before it closes the loop, so a generator is where a connection's end can be tied to its loop's.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable

__all__ = ["close_with_loop"]

_waiting: set[AsyncGenerator[None, None]] = set()


async def close_with_loop(close: Callable[[], Awaitable[object]]) -> AsyncGenerator[None, None]:
    """Call `close` when the running event loop is about to end; or before, by `aclose` of what this returns."""

    async def wait_for_the_end() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            _waiting.discard(waiting)
            await close()

    waiting = wait_for_the_end()
    await anext(waiting)
    _waiting.add(waiting)  # a generator that nobody holds is ended at once
    return waiting
