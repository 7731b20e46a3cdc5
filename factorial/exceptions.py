"""Errors at their path and with their names of nfactorial 0.1.x. New programs use `factorial.errors`.

    from factorial.exceptions import FatalAgentError, RetryableError

`RETRYABLE_EXCEPTIONS`, for an `except` clause, and the names of the openai SDK's errors import that SDK when they are
first used.
"""

from typing import Any

from factorial.errors import (
    BatchNotFoundError,
    CorruptedTaskDataError,
    FatalAgentError,
    InactiveTaskError,
    InvalidLLMResponseError,
    InvalidTaskIdError,
    ModelError,
    ModelRefusedError,
    RateLimitError,
    RetryableError,
    TaskNotFoundError,
)

__all__ = [
    "BatchNotFoundError", "CorruptedTaskDataError", "FatalAgentError", "InactiveTaskError", "InvalidLLMResponseError",
    "InvalidTaskIdError", "ModelError", "ModelRefusedError", "RateLimitError", "RetryableError", "TaskNotFoundError",
]  # fmt: skip


_OF_THE_SDK = {
    "OpenAIRateLimitError": "RateLimitError",
    "OpenAIInternalServerError": "InternalServerError",
    "OpenAITimeoutError": "APITimeoutError",
    "OpenAIConnectionError": "APIConnectionError",
}


def __getattr__(name: str) -> Any:
    if name == "RETRYABLE_EXCEPTIONS":
        return (*(__getattr__(error) for error in _OF_THE_SDK), RetryableError, RateLimitError)
    if name in _OF_THE_SDK:
        import openai

        return getattr(openai, _OF_THE_SDK[name])
    raise AttributeError(f"module 'factorial.exceptions' has no attribute {name!r}")
