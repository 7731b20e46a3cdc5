"""What a failed turn leads to: another attempt, and when, or the end of the run."""

import random

from factorial._core.redact import hide_secrets
from factorial._core.text import printable_text
from factorial.agent.lifecycle.outcome import Backoff, Fail
from factorial.config import AgentWorkerConfig
from factorial.errors import ConfigError, ContextError, FatalAgentError, ModelRefusedError

__all__ = ["after_failure", "describe", "explain_failure", "is_final"]

_FINAL = (
    FatalAgentError, ModelRefusedError, ConfigError, ContextError, ImportError, NameError, NotImplementedError,
)  # fmt: skip
"""Errors that another attempt would meet again."""


def after_failure(error: BaseException, retries: int, policy: AgentWorkerConfig) -> Backoff | Fail:
    """The outcome after `error`. `retries` attempts in a row have failed before this one."""
    if is_final(error) or retries >= policy.max_retries:
        return Fail(error)
    delay = min(policy.retry_delay * 2**retries, policy.max_retry_delay) * random.uniform(0.5, 1.0)
    asked_for = getattr(error, "retry_after", None)
    # Never less than the provider asked for. The jitter keeps tasks that were refused together from returning together.
    return Backoff(max(delay, (asked_for or 0.0) * random.uniform(1.0, 1.1)), error)


def is_final(error: BaseException) -> bool:
    """Whether `error` ends the run whatever the number of retries: one of `_FINAL`, or not an ordinary exception."""
    return isinstance(error, _FINAL) or not isinstance(error, Exception)


def explain_failure(agent: str, task_id: str, error: BaseException, tries: int | None = None) -> str:
    """The `error` of `run_failed`. `tries`: the number of retries after which the run was ended."""
    limit = "" if tries is None else f" due to max retries ({tries})"
    return f"Agent {agent} failed to complete task {task_id}{limit}: {describe(error)}"


def describe(error: BaseException) -> str:
    """`error` in one line: the message, with the type's name where the message alone would not say enough."""
    message = hide_secrets(printable_text(str(error).strip()))
    return (
        message if message and type(error).__module__.startswith("factorial") else f"{type(error).__name__}: {message}"
    )
