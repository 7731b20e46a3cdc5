"""What belongs to an event loop and should end with it.

Connections live in one event loop; programs call `asyncio.run` as often as they like. `asyncio.run` ends the loop's
async generators before it closes the loop, so a generator is where a connection's end can be tied to its loop's.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from weakref import WeakKeyDictionary

__all__ = ["close_with_loop"]

_closers: "WeakKeyDictionary[asyncio.AbstractEventLoop, list[AsyncGenerator[None, None]]]" = WeakKeyDictionary()


async def close_with_loop(close: Callable[[], Awaitable[object]]) -> None:
    """Call `close` when the running event loop is about to end. `close` may find that nothing is left to do."""

    async def wait_for_the_end() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await close()

    waiting = wait_for_the_end()
    await anext(waiting)
    _closers.setdefault(asyncio.get_running_loop(), []).append(waiting)
