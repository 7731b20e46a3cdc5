"""A model call: one request, answered by one model or by the first of several that can answer.

A call consists of rounds. A round asks each model once, in order, and ends with the first answer. A model whose error
may be temporary (see the table in `faults`) is asked again in the next round, after a short pause or after the pause
that the provider asks for. After the last round the call has failed, and the task backs off. Called by the agent's
`completion`.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from factorial.errors import ConfigError, ModelError, ModelRefusedError
from factorial.models.conversation import ready
from factorial.models.fallback import AnyModel, FallbackModels
from factorial.models.faults import unusable_key, worth_another_try
from factorial.models.model import Model
from factorial.models.request import ModelRequest, OnChunk
from factorial.models.view import viewed
from factorial.telemetry.task_log import task_fields

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

__all__ = ["check_model", "complete"]

_logger = logging.getLogger(__name__)

_ROUNDS = 3
_FIRST_PAUSE = 0.5
"""Seconds. The pause doubles after each round."""


async def complete(
    model: AnyModel,
    request: ModelRequest,
    on_chunk: OnChunk | None = None,
    on_failure: Callable[[], Awaitable[None]] | None = None,
) -> "ChatCompletion":
    """The answer to `request`, as `view` makes it of what the provider sent.

    Raises the `ModelError` of the model. If several models failed, the error names all of them; it is one that is worth
    a later retry, if any of them is. What `on_chunk` raises passes through. `on_failure` is called when a model has
    failed: the chunks that it has sent belong to no answer.
    """
    candidates = _models(model)
    request = replace(request, messages=ready(request.messages))
    failures: dict[Model, ModelError] = {}
    started = time.monotonic()
    for round_number in range(_ROUNDS):
        for candidate in candidates:
            try:
                answer = await candidate.transport().create(candidate, request, on_chunk)
                return viewed(answer, candidate.origin, request.call_ids)
            except ModelError as error:
                failures[candidate] = error
                _logger.debug(
                    "model call failed: %s", error, extra=task_fields()
                )  # the last error is in the task's log
                if on_failure is not None:
                    await on_failure()
        candidates = tuple(candidate for candidate in candidates if worth_another_try(failures[candidate]))
        pause = _pause(round_number, [failures[candidate] for candidate in candidates])
        if not candidates or round_number == _ROUNDS - 1 or time.monotonic() - started + pause > request.timeout:
            break
        await asyncio.sleep(pause)
    raise _verdict(list(failures.values()))


def check_model(model: AnyModel) -> None:
    """Raise `ConfigError` if the key for `model` is missing or unusable; of several models, if all keys are."""
    flaws = [unusable_key(candidate) for candidate in _models(model)]
    if all(flaws):
        raise ConfigError("; ".join(flaw for flaw in flaws if flaw))


def _models(model: AnyModel) -> tuple[Model, ...]:
    if isinstance(model, FallbackModels):
        return model.models
    if isinstance(model, Model):
        return (model,)
    raise ConfigError(f"model={model!r} is not a Model: import one from factorial, or use find_model(name)")


def _pause(round_number: int, errors: list[ModelError]) -> float:
    """Seconds until the next round: the backoff with jitter, or what a provider asks for if that is longer."""
    backoff = _FIRST_PAUSE * float(2**round_number) * random.uniform(0.5, 1.0)
    return max([backoff, *(error.retry_after * random.uniform(1.01, 1.1) for error in errors if error.retry_after)])


def _verdict(errors: list[ModelError]) -> ModelError:
    """One error for the call: a temporary one if there is any, because then a later retry may succeed."""
    temporary = [error for error in errors if not isinstance(error, ModelRefusedError)]
    chosen = (temporary or errors)[-1]
    if len(errors) == 1:
        return chosen
    waits = [error.retry_after for error in temporary]
    soonest = min((wait for wait in waits if wait is not None), default=None) if all(waits) else None
    listing = "; ".join(str(error) for error in errors)
    return type(chosen)(f"all {len(errors)} models failed: {listing}", retry_after=soonest, status=chosen.status)
