"""The boundary to the user's code: whatever it raises is the result of one call, and affects nothing else.

asyncio and Python act on some exceptions themselves. `CancelledError` ends the asyncio task as cancelled,
`KeyboardInterrupt` and `SystemExit` stop the event loop, `GeneratorExit` closes a coroutine, and `StopIteration` does
not pass a future. So what the user's code raises crosses the boundary as a value, `Raised`. And it runs in an asyncio
task of its own, so a cancel that it issues reaches only itself.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextvars import Context
from dataclasses import dataclass
from typing import TypeVar

from factorial._core.text import error_text
from factorial.errors import FatalAgentError, RetryableError

__all__ = ["Raised", "attempt", "caught", "found_in", "is_ending", "ordinary", "result_of_call"]

_T = TypeVar("_T")
_Error = TypeVar("_Error", bound=BaseException)


@dataclass(frozen=True, slots=True)
class Raised:
    """What a call raised."""

    error: BaseException


def result_of_call(function: Callable[[], _T]) -> _T | Raised:
    """What the plain function returns or raises."""
    try:
        return function()
    except BaseException as error:  # the boundary to the user's code
        return Raised(error)


async def caught(call: Callable[[], Awaitable[_T]]) -> _T | Raised:
    """What awaiting `call()` returns or raises, a cancel of the present asyncio task included."""
    try:
        return await call()
    except BaseException as error:  # the boundary to the user's code
        return Raised(error)


async def attempt(call: Callable[[], Awaitable[_T]], context: Context | None = None) -> _T | Raised:
    """What awaiting `call()` returns or raises, in an asyncio task of its own and in `context`.

    Raises `CancelledError` only if the present asyncio task was cancelled. That cancels the call, whatever it raises
    then. A call that returns all the same is finished, and its result is returned.
    """
    here = asyncio.current_task()
    assert here is not None
    before = here.cancelling()
    result = await asyncio.get_running_loop().create_task(caught(call), name=here.get_name(), context=context)
    if isinstance(result, Raised) and here.cancelling() > before:
        raise asyncio.CancelledError from result.error
    return result


def ordinary(what: str, error: BaseException) -> Exception:
    """`error`, raised by `what`, as an exception that fails an attempt at a turn and affects nothing else.

    An `Exception` stays as it is, and of a group that contains a `FatalAgentError`, that one counts. Anything else,
    such as a `CancelledError` though nobody cancelled, becomes a `RetryableError`.
    """
    if fatal := found_in(error, FatalAgentError):
        return fatal
    if isinstance(error, Exception):
        return error
    is_cancel = isinstance(error, asyncio.CancelledError)
    retryable = RetryableError(
        f"{what} was cancelled from within" if is_cancel else f"{what} raised {error_text(error)}"
    )
    retryable.__cause__ = error
    return retryable


def found_in(error: BaseException, *kinds: type[_Error]) -> _Error | None:
    """`error` if it is of one of these kinds; of an exception group, the first one that is."""
    return next((one for kind in kinds for one in _leaves(error) if isinstance(one, kind)), None)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error


def is_ending(error: BaseException) -> bool:
    """Whether `error` ends the present coroutine: its asyncio task was cancelled, or it is being closed."""
    if isinstance(error, asyncio.CancelledError):
        here = asyncio.current_task()
        return here is not None and here.cancelling() > 0
    return isinstance(error, GeneratorExit)
