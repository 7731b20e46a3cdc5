"""Decorators for the methods of an agent: `@retry` and `@publish_progress`."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar, overload

from factorial.agent.lifecycle.failure import is_final
from factorial.agent.lifecycle.progress import Ending, Progress, showing
from factorial.agent.lifecycle.steps import current_frame
from factorial.context import AgentContext, ExecutionContext, note_attempt
from factorial.errors import ConfigError

__all__ = ["publish_progress", "retry"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Method = Callable[_P, Coroutine[Any, Any, _T]]


@overload
def retry(func: _Method[_P, _T]) -> _Method[_P, _T]: ...
@overload
def retry(
    *,
    max_attempts: int = 3,
    delay: float = 1.0,
    max_delay: float = 60.0,
    exponential_base: float = 2.0,
    jitter: bool = True,
) -> Callable[[_Method[_P, _T]], _Method[_P, _T]]: ...
def retry(
    func: _Method[_P, _T] | None = None,
    *,
    max_attempts: int = 3,
    delay: float = 1.0,
    max_delay: float = 60.0,
    exponential_base: float = 2.0,
    jitter: bool = True,
) -> Any:
    """Call the method up to `max_attempts` times until it does not raise, and raise its last error.

    The pause before a further try is `delay` seconds, then `exponential_base` times as long, and so on up to
    `max_delay`; `jitter` makes it 0.5 to 1.5 times that. Errors that cannot pass (see `factorial.errors`) are raised
    at once. Each failed try adds 1 to `attempt` of an `AgentContext` that is passed to the method.
    """
    if max_attempts < 1 or delay < 0 or max_delay < 0 or exponential_base < 1:
        raise ConfigError(
            f"retry(max_attempts={max_attempts}, delay={delay}, max_delay={max_delay}, "
            f"exponential_base={exponential_base}): use at least 1 attempt, delays of at least 0 seconds, "
            "and a base of at least 1"
        )

    def decorate(method: _Method[_P, _T]) -> _Method[_P, _T]:
        @wraps(method)
        async def persistent(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            for attempt in range(1, max_attempts):
                try:
                    return await method(*args, **kwargs)
                except Exception as error:  # the boundary to the user's code: any error may pass, but those that cannot
                    if is_final(error):
                        raise
                pause = min(delay * exponential_base ** (attempt - 1), max_delay)
                await asyncio.sleep(pause * random.uniform(0.5, 1.5) if jitter else pause)
                for context in (value for value in (*args, *kwargs.values()) if isinstance(value, AgentContext)):
                    note_attempt(context, context.attempt + 1)
            return await method(*args, **kwargs)

        return persistent

    return decorate(func) if func is not None else decorate


@overload
def publish_progress(func: _Method[_P, _T]) -> _Method[_P, _T]: ...
@overload
def publish_progress(
    *,
    func_name: str | None = None,
    include_context: bool = True,
    include_args: bool = True,
    include_result: bool = True,
) -> Callable[[_Method[_P, _T]], _Method[_P, _T]]: ...
def publish_progress(
    func: _Method[_P, _T] | None = None,
    *,
    func_name: str | None = None,
    include_context: bool = True,
    include_args: bool = True,
    include_result: bool = True,
) -> Any:
    """Publish `progress_update_{func_name}_started`, and `_completed` or `_failed`, around each call of the method.

    `func_name` is the method's own name unless it is given. What is not included is not in the events: the summary of
    the context, the arguments, the result. Outside of a turn the method is called without events.
    """

    hidden = [*([] if include_context else ["context"]), *([] if include_args else ["args", "kwargs"])]

    def decorate(method: _Method[_P, _T]) -> _Method[_P, _T]:
        @wraps(method)
        async def watched(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            execution_ctx, frame = ExecutionContext.get(), current_frame()
            if execution_ctx is None or frame is None:
                return await method(*args, **kwargs)
            shown = [arg for arg in args[1:] if not isinstance(arg, AgentContext | ExecutionContext)]
            progress = Progress(
                func_name or method.__name__,
                execution_ctx,
                frame.state.context,
                args=shown,
                kwargs=kwargs,
                hidden=hidden,
            )
            ending = showing if include_result else lambda _: Ending()
            return await progress.follow(lambda: method(*args, **kwargs), ending)

        return watched

    return decorate(func) if func is not None else decorate
