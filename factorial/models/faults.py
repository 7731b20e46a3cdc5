"""The errors of model calls: how each is raised, and whether the call tries again.

    cause                                          raised as                 same model    next model
    429                                            RateLimitError            yes           yes
    5xx, no connection                             ModelUnavailableError     yes           yes
    408, 409, 425, timeout                         ModelError                yes           yes
    a broken, cut or unreadable answer             TruncatedResponseError    no            yes
    a missing key, any other 4xx, no quota left    ModelRefusedError         no            yes

"Same model" is a further try within the same call, after a short pause. If the provider asks for a pause of more than
10 seconds, there is no further try within the call: the error has `retry_after`, and the task backs off without
holding a worker. After a broken answer there is none either, because its chunks may have been published.

Messages never contain a key. The SDK's errors are not chained, because they hold the request with its headers.
"""

import math
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from factorial._core.redact import hide_secrets
from factorial._core.text import shorten
from factorial.errors import (
    ModelError,
    ModelRefusedError,
    ModelUnavailableError,
    RateLimitError,
    TruncatedResponseError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openai import APIStatusError

    from factorial.models.model import Model

__all__ = ["explain", "missing_key", "unreadable", "worth_another_try"]

_LONGEST_PAUSE = 10.0
"""Seconds. A longer `Retry-After` is left to the task's backoff."""

_TRANSIENT = frozenset({408, 409, 425})
_NO_QUOTA = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})


def worth_another_try(error: ModelError) -> bool:
    """Whether the same model should be asked again within this call."""
    if isinstance(error, ModelRefusedError | TruncatedResponseError):
        return False
    return error.retry_after is None or error.retry_after <= _LONGEST_PAUSE


def explain(error: Exception, model: "Model") -> ModelError:
    """The `ModelError` for an error of the openai SDK in a call of `model`."""
    import openai

    where = f"{model.name} at {model.provider.name}"
    if isinstance(error, openai.APIStatusError):
        return _explain_status(error, model, where)
    if isinstance(error, openai.APITimeoutError):
        return ModelError(f"{where}: no answer in time (raise request_timeout if the model needs longer)")
    if isinstance(error, openai.APIConnectionError):
        return ModelUnavailableError(f"{where}: no connection to {model.provider.url}: {_reason(error, model)}")
    if isinstance(error, openai.APIError) and not isinstance(error, openai.APIResponseValidationError):
        return ModelError(f"{where}: {_public(error.message, model)}")
    return unreadable(model, error)


def unreadable(model: "Model", reason: object) -> TruncatedResponseError:
    """The error for an answer that is incomplete or does not follow the protocol."""
    return TruncatedResponseError(
        f"{model.name} at {model.provider.name}: the answer is unusable: {_public(reason, model)}"
    )


def missing_key(model: "Model") -> str:
    """The message for a model whose key is not in the environment."""
    return (
        f"model {model.name!r} needs the environment variable {model.provider.api_key_env}, which is not set: set it, "
        "pass another model (model=...), or use factorial.testing.ScriptedModel, which plays a script and needs no key"
    )


def _explain_status(error: "APIStatusError", model: "Model", where: str) -> ModelError:
    status = error.status_code
    said = _public(error.message, model)
    wait = _retry_after(error.response.headers)
    if status == 429 and error.code not in _NO_QUOTA:
        return RateLimitError(f"{where}: too many requests (HTTP 429): {said}", retry_after=wait, status=status)
    if status >= 500 or status in _TRANSIENT:
        kind = ModelUnavailableError if status >= 500 else ModelError
        return kind(f"{where}: the provider failed (HTTP {status}): {said}", retry_after=wait, status=status)
    hint = {
        401: f". Check {model.provider.api_key_env or 'the key'}",
        403: f". Check {model.provider.api_key_env or 'the key'}",
        404: f". Check provider_model_id={model.provider_model_id!r} and the address {model.provider.url}",
    }.get(status, "")
    return ModelRefusedError(f"{where} refuses the request (HTTP {status}): {said}{hint}", status=status)


def _reason(error: Exception, model: "Model") -> str:
    """The innermost cause. It says more than the SDK's 'Connection error.'."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return _public(str(cause) or type(cause).__name__, model)


def _public(text: object, model: "Model") -> str:
    """`text` without keys, and at most 500 characters of it."""
    shown = str(text)
    if key := model.provider.api_key:
        shown = shown.replace(key, "***")
    return shorten(hide_secrets(shown), 500)


def _retry_after(headers: "Mapping[str, str]") -> float | None:
    """The pause that the provider asks for, in seconds. Its unit is milliseconds or seconds, or it is a date."""
    for header, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(header, "").strip()
        try:
            seconds = float(value) * unit
        except ValueError:
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
