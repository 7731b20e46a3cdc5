"""The door of the package: one request, answered by one model or by the first of several that can.

A call goes in rounds. A round asks each model once, in order, and ends with the first answer. Models whose
fault may pass at once (see the table in `faults`) are asked again in the next round, after a short pause or
after what the provider asks for. When no round is left, the call has failed: the task's own backoff goes on
from there. Called by the agent's `completion`.
"""

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Any

from factorial._core.json import load_json
from factorial.errors import ConfigError, ModelError, ModelRefusedError
from factorial.models.fallback import FallbackModels
from factorial.models.faults import missing_key, worth_another_try
from factorial.models.model import Model
from factorial.models.request import ModelRequest, OnChunk
from factorial.telemetry.story import fields_here

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

__all__ = ["assistant_message", "check_model", "complete"]

logger = logging.getLogger(__name__)

_ROUNDS = 3
_FIRST_PAUSE = 0.5


async def complete(
    model: Model | FallbackModels, request: ModelRequest, on_chunk: OnChunk | None = None
) -> "ChatCompletion":
    """The answer to `request`. Raises the `ModelError` of the model, or of the most hopeful of several."""
    candidates = _models(model)
    failures: dict[Model, ModelError] = {}
    started = time.monotonic()
    for round_number in range(_ROUNDS):
        for candidate in candidates:
            try:
                return await candidate.transport().create(candidate, request, on_chunk)
            except ModelError as error:
                failures[candidate] = error
                logger.warning("model call failed: %s", error, extra=fields_here())
        candidates = tuple(candidate for candidate in candidates if worth_another_try(failures[candidate]))
        pause = _pause(round_number, [failures[candidate] for candidate in candidates])
        if not candidates or round_number == _ROUNDS - 1 or time.monotonic() - started + pause > request.timeout:
            break
        await asyncio.sleep(pause)
    raise _verdict(list(failures.values()))


def check_model(model: Model | FallbackModels) -> None:
    """Raise `ConfigError` if no key for `model` (for none of several) is in the environment."""
    models = _models(model)
    if all(candidate.provider.lacks_key for candidate in models):
        raise ConfigError("; ".join(missing_key(candidate) for candidate in models))


def assistant_message(completion: "ChatCompletion") -> dict[str, Any]:
    """The model's answer as the message to append to the conversation.

    It holds only what every provider takes back. Arguments that are no JSON object go back as `{}`: some
    providers parse them, and would refuse the whole conversation (the tool's error result says what was
    wrong). `extra_content` stays with its tool call: Gemini refuses a call that comes back without it.
    """
    answer = completion.choices[0].message
    calls = [_sendable_call(call) for call in answer.tool_calls or () if getattr(call, "function", None)]
    message: dict[str, Any] = {"role": "assistant", "content": answer.content or (None if calls else "")}
    if calls:
        message["tool_calls"] = calls
    if getattr(answer, "refusal", None):
        message["refusal"] = answer.refusal
    return message


def _models(model: Model | FallbackModels) -> tuple[Model, ...]:
    if isinstance(model, FallbackModels):
        return model.models
    if isinstance(model, Model):
        return (model,)
    raise ConfigError(f"model={model!r} is not a Model: import one from factorial, or use find_model(name)")


def _pause(round_number: int, errors: list[ModelError]) -> float:
    """Seconds until the next round: our own backoff with jitter, or what a provider asks for if that is longer."""
    backoff = _FIRST_PAUSE * float(2**round_number) * random.uniform(0.5, 1.0)
    return max([backoff, *(error.retry_after * random.uniform(1.01, 1.1) for error in errors if error.retry_after)])


def _verdict(errors: list[ModelError]) -> ModelError:
    """One error for the call: a passing one if there is any, since then it is worth another try later."""
    passing = [error for error in errors if not isinstance(error, ModelRefusedError)]
    chosen = (passing or errors)[-1]
    if len(errors) == 1:
        return chosen
    waits = [error.retry_after for error in passing]
    soonest = min((wait for wait in waits if wait is not None), default=None) if all(waits) else None
    listing = "; ".join(str(error) for error in errors)
    return type(chosen)(f"all {len(errors)} models failed: {listing}", retry_after=soonest, status=chosen.status)


def _sendable_call(call: Any) -> dict[str, Any]:
    sendable: dict[str, Any] = {
        "id": call.id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": _sendable_arguments(call.function.arguments)},
    }
    if extra := (call.model_extra or {}).get("extra_content"):
        sendable["extra_content"] = extra
    return sendable


def _sendable_arguments(arguments: str | None) -> str:
    try:
        return arguments if arguments and isinstance(load_json(arguments), dict) else "{}"
    except ValueError:
        return "{}"
