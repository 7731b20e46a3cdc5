"""Steps of the user's own: `execution_ctx.step` and `execution_ctx.step_sync`.

The function's result is recorded as JSON. The caller gets what was recorded, whether the function was called or not, so
a turn that is taken again goes on with the same value.
"""

import asyncio
import inspect
import queue
import re
import typing
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import Context, copy_context
from functools import lru_cache, partial
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from factorial._core.boundary import Raised, caught, result_of_call
from factorial._core.json import load_json
from factorial._core.sizes import MAX_VALUE_BYTES, too_large
from factorial.agent.lifecycle.fidelity import difference
from factorial.agent.lifecycle.guard import StepKind
from factorial.agent.lifecycle.host import Recorded
from factorial.agent.lifecycle.progress import showing
from factorial.agent.lifecycle.step import Step
from factorial.errors import ConfigError, ContextError, FactorialError
from factorial.tools.call import in_thread

__all__ = ["called", "called_in_thread", "result_of", "user_step"]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")


def user_step(name: str, function: Callable[..., Any], call: Callable[[], Awaitable[Any]]) -> Step[bytes]:
    """The step `name` that makes `call`, a call of `function`. Its result is the recorded JSON: see `result_of`.

    Raises `ConfigError` for a name that cannot be one, or if `function` is not a function.
    """
    given: object = name
    if not isinstance(given, str) or not _NAME.fullmatch(given):
        raise ConfigError(f"step name {given!r}: use 1 to 100 letters, digits, '-', '_' or '.'")
    if not callable(function):
        raise ConfigError(
            f"step {name!r}: {function!r} is not a function: pass the function, and its arguments after it"
        )

    async def encoded() -> bytes:
        value = await call()
        data = _encoded(name, value)
        if _adapter_of(function) is not None and (found := difference(value, result_of(name, function, data))):
            raise ContextError(
                f"the result of step {name!r} would not come back as it is: {found}. Annotate the function with the "
                "type that it returns, or return plain data"
            )
        return data

    return Step(
        name=f"step:{name}",
        kind=StepKind.STEP,
        about=name,
        call=encoded,
        record=Recorded,
        recall=lambda recorded: recorded.result,
        args=(name,),
        ending=lambda result: showing(load_json(result)),
        keeps_context=False,
    )


def result_of(name: str, function: Callable[..., Any], recorded: bytes) -> Any:
    """What was recorded of `function`'s result, as the type that its annotation says, or as plain JSON data.

    Raises `ContextError` if it does not fit the type: the function was changed while the task was in flight.
    """
    adapter = _adapter_of(function)
    if adapter is None:
        return load_json(recorded)
    try:
        return adapter.validate_json(recorded)
    except ValidationError as unfit:
        raise ContextError(f"what is recorded of the step {name!r} does not fit its return type: {unfit}") from None


async def called(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What `function` returns. A plain function is called in a thread, because it may block."""
    if inspect.iscoroutinefunction(inspect.unwrap(function)) or inspect.iscoroutinefunction(function):
        return await function(*args, **kwargs)
    value = _value_of(await in_thread(partial(function, *args, **kwargs)))
    return await value if inspect.isawaitable(value) else value


def called_in_thread(
    loop: asyncio.AbstractEventLoop,
    take: Callable[[Callable[[], Awaitable[Any]]], Coroutine[Any, Any, bytes]],
    call: Callable[[], Any],
) -> bytes:
    """`take(...)` on the event loop `loop`, with `call` made in the present thread if the step is not recalled.

    Raises `FactorialError` in the thread of an event loop, which must not be blocked.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise FactorialError("step_sync would block the event loop: use await execution_ctx.step(...) here")
    wanted: queue.SimpleQueue[tuple[asyncio.Future[Any], Context] | None] = queue.SimpleQueue()

    async def call_there() -> Any:
        future: asyncio.Future[Any] = loop.create_future()
        wanted.put((future, copy_context()))  # the call is made within the step, as its context variables say
        return _value_of(await future)

    taken = asyncio.run_coroutine_threadsafe(caught(lambda: take(call_there)), loop)
    taken.add_done_callback(lambda _: wanted.put(None))  # it was recalled, or refused
    if (asked := wanted.get()) is not None:
        future, context = asked
        loop.call_soon_threadsafe(_settle, future, context.run(result_of_call, call))
    result: bytes = _value_of(taken.result())
    return result


def _settle(future: "asyncio.Future[Any]", result: Any) -> None:
    if not future.done():  # else the turn was broken off meanwhile
        future.set_result(result)


def _value_of(result: Any) -> Any:
    """What a call returned; raises what it raised."""
    if isinstance(result, Raised):
        if isinstance(result.error, StopIteration):  # a coroutine cannot raise it
            raise RuntimeError("the step's function raised StopIteration") from result.error
        raise result.error
    return result


def _encoded(name: str, value: Any) -> bytes:
    try:
        encoded = to_json(value, inf_nan_mode="strings")
    except (PydanticSerializationError, ValueError, RecursionError) as unfit:
        raise ContextError(
            f"the result of step {name!r} ({type(value).__name__}) cannot be stored as JSON: {unfit}"
        ) from None
    if len(encoded) > MAX_VALUE_BYTES:
        raise ContextError(too_large(f"the result of step {name!r} as JSON", len(encoded), MAX_VALUE_BYTES))
    return encoded


def _adapter_of(function: Callable[..., Any]) -> TypeAdapter[Any] | None:
    """Reads results of `function`'s return type; None if it has none that can be read from JSON."""
    while isinstance(function, partial):
        function = function.func
    if not inspect.isroutine(function) and not inspect.isclass(function):
        function = type(function).__call__
    try:
        returns: Any = function if inspect.isclass(function) else typing.get_type_hints(function).get("return", Any)
        return _adapter(returns)
    except (PydanticUserError, NameError, TypeError, AttributeError):
        return None


@lru_cache(maxsize=1000)
def _adapter(returns: Any) -> TypeAdapter[Any] | None:
    return None if returns is Any else TypeAdapter(returns)
