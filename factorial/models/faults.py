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

Gateways also report an error in the body of an answer with the status 200. The code in it counts like a status.

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
from factorial.models.provider import key_flaw

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openai import APIStatusError

    from factorial.models.model import Model

__all__ = ["explain", "explain_said", "unreadable", "unusable_key", "worth_another_try"]

_LONGEST_PAUSE = 10.0
"""Seconds. A longer `Retry-After` is left to the task's backoff."""

_TRANSIENT = frozenset({408, 409, 425})
_NO_QUOTA = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_STATUS_OF_WORD = {
    "rate_limit": 429, "too_many_requests": 429, "resource_exhausted": 429, "insufficient_quota": 429,
    "billing_hard_limit": 429, "billing_not_active": 429,
    "authentication": 401, "invalid_api_key": 401, "unauthorized": 401, "unauthenticated": 401,
    "permission": 403, "forbidden": 403, "not_found": 404,
    "invalid_request": 400, "context_length_exceeded": 400, "invalid_argument": 400, "bad_request": 400,
    "badrequest": 400, "content_policy": 400,
    "overloaded": 503, "unavailable": 503, "timeout": 504, "server_error": 500, "internal": 500, "api_error": 500,
}  # fmt: skip
"""What the words in an error's code or type mean as a status. The first one that is found counts."""
_EPOCH = 1_000_000_000.0
"""A number of seconds that is no pause, but a moment: the year 2001."""


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
        return _explain_status(error, model)
    if isinstance(error, openai.APITimeoutError):
        return ModelError(f"{where}: no answer in time (raise request_timeout if the model needs longer)")
    if isinstance(error, openai.APIConnectionError):
        return ModelUnavailableError(f"{where}: no connection to {model.provider.shown_url}: {_reason(error, model)}")
    if isinstance(error, openai.APIError) and not isinstance(error, openai.APIResponseValidationError):
        return explain_said(error.body or error.message, model)
    return unreadable(model, error)


def explain_said(said: object, model: "Model") -> ModelError:
    """The `ModelError` for an error that a server reports within an answer: as `{"code", "message"}`, or as text."""
    about = said if isinstance(said, dict) else {"message": said}
    message = next((about[name] for name in ("message", "msg", "detail", "error") if about.get(name)), said)
    quota = next((word for word in (about.get("code"), about.get("type")) if str(word) in _NO_QUOTA), None)
    return _of_status(model, _status_in(about), quota, message, None)


def unreadable(model: "Model", reason: object) -> TruncatedResponseError:
    """The error for an answer that is incomplete or does not follow the protocol."""
    return TruncatedResponseError(
        f"{model.name} at {model.provider.name}: the answer is unusable: {_public(reason, model)}"
    )


def _missing_key(model: "Model") -> str:
    return (
        f"model {model.name!r} needs the environment variable {model.provider.api_key_env}, which is not set: set it, "
        "pass another model (model=...), or use factorial.testing.ScriptedModel, which plays a script and needs no key"
    )


def unusable_key(model: "Model") -> str | None:
    """The message for a model whose key is missing or cannot be sent; None if there is nothing to say."""
    if model.provider.lacks_key:
        return _missing_key(model)
    flaw = key_flaw(model.provider.api_key or "")
    if flaw is None:
        return None
    source = "the key that was passed in code" if model.provider.key else model.provider.api_key_env
    return (
        f"model {model.name!r}: {source} is not a key: {flaw}. Keys are printable ASCII without spaces: copy the key "
        "again"
    )


def _explain_status(error: "APIStatusError", model: "Model") -> ModelError:
    wait = _retry_after(error.response.headers)
    return _of_status(model, error.status_code, error.code, error.message, wait)


def _of_status(model: "Model", status: int | None, code: object, message: object, wait: float | None) -> ModelError:
    where, said = f"{model.name} at {model.provider.name}", _public(message, model)
    if status is None:
        return ModelError(f"{where}: {said}")
    if status == 429 and str(code) not in _NO_QUOTA:
        return RateLimitError(f"{where}: too many requests (HTTP 429): {said}", retry_after=wait, status=status)
    if status >= 500 or status in _TRANSIENT:
        kind = ModelUnavailableError if status >= 500 else ModelError
        return kind(f"{where}: the provider failed (HTTP {status}): {said}", retry_after=wait, status=status)
    hint = {
        401: f". Check {model.provider.api_key_env or 'the key'}",
        403: f". Check {model.provider.api_key_env or 'the key'}",
        404: f". Check provider_model_id={model.provider_model_id!r} and the address {model.provider.shown_url}",
    }.get(status, "")
    return ModelRefusedError(f"{where} refuses the request (HTTP {status}): {said}{hint}", status=status)


def _status_in(error: "Mapping[str, object]") -> int | None:
    """The status that an error in a body stands for; None if it does not say."""
    words = [error.get(name) for name in ("code", "status", "status_code", "type")]
    for word in words:
        if str(word).isdecimal() and 400 <= int(str(word)[:4]) <= 599:
            return int(str(word))
    for word in words:
        lowered = str(word).lower().replace(" ", "_")
        for known, status in _STATUS_OF_WORD.items():
            if known in lowered:
                return status
    return None


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
    """The pause that the provider asks for, in seconds; None if it does not say, or says nothing sensible.

    The header's unit is seconds or milliseconds. It may also be a date, or against the standard the seconds since 1970.
    There is no upper bound here: `max_retry_after` of the worker is one.
    """
    for header, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(header, "").strip()
        try:
            seconds = float(value) * unit
        except ValueError:
            continue
        if _EPOCH <= seconds < 10 * _EPOCH:
            seconds -= time.time()
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
