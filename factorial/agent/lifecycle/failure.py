"""What a failed turn leads to: another attempt, and when, or the end of the run."""

import random

from factorial._core.boundary import found_in
from factorial._core.redact import hide_secrets
from factorial._core.text import error_text
from factorial.agent.lifecycle.outcome import Backoff, Defer, Fail
from factorial.config import AgentWorkerConfig
from factorial.errors import (
    ConfigError,
    ContextError,
    FatalAgentError,
    ModelRefusedError,
    ModelUnavailableError,
    RateLimitError,
    UnreadableContextError,
)

__all__ = ["after_failure", "deferral", "describe", "explain_failure", "is_final", "patience_with"]

_FINAL = (
    FatalAgentError, ModelRefusedError, ConfigError, ContextError, ImportError, NameError, NotImplementedError,
)  # fmt: skip
"""Errors that another attempt would meet again."""


def after_failure(
    error: BaseException, retries: int, deferred_for: float | None, policy: AgentWorkerConfig
) -> Backoff | Defer | Fail:
    """The outcome after `error`. `retries` attempts in a row have failed before this one. `deferred_for`: see
    `deferral`."""
    if (deferred := deferral(error, deferred_for, policy)) is not None:
        return deferred
    if is_final(error) or retries >= policy.max_retries:
        return Fail(error)
    return Backoff(_pause(policy.retry_delay * 2**retries, error, policy), error)


def deferral(error: BaseException, deferred_for: float | None, policy: AgentWorkerConfig) -> Defer | None:
    """The deferral of a task that is not at fault for `error`; None if it is at fault, or has waited long enough.

    `deferred_for`: the seconds since the task was deferred first; None if it cannot be deferred here.
    """
    if deferred_for is None or deferred_for >= patience_with(error, policy):
        return None
    pause = _pause(max(policy.retry_delay, deferred_for / 4), error, policy)
    return Defer(pause, error, is_first=deferred_for == 0)


def patience_with(error: BaseException, policy: AgentWorkerConfig) -> float:
    """For how many seconds tasks are deferred for `error`; 0 if they are at fault themselves."""
    if isinstance(error, ModelUnavailableError | RateLimitError):
        return policy.provider_patience
    return policy.code_patience if isinstance(error, UnreadableContextError) else 0.0


def _pause(seconds: float, error: BaseException, policy: AgentWorkerConfig) -> float:
    """The pause before the next attempt, in seconds: with jitter, so that tasks that failed together do not return
    together; and never less than the provider asked for, within bounds: some ask for years."""
    pause = min(seconds, policy.max_retry_delay) * random.uniform(0.5, 1.0)
    asked_for = min(getattr(error, "retry_after", None) or 0.0, policy.max_retry_after)
    return max(pause, asked_for * random.uniform(1.0, 1.1))


def is_final(error: BaseException) -> bool:
    """Whether `error` ends the run whatever the number of retries: one of `_FINAL`, alone or in an exception group."""
    return found_in(error, *_FINAL) is not None


def explain_failure(agent: str, task_id: str, error: BaseException, tries: int | None = None) -> str:
    """The `error` of `run_failed`. `tries`: the number of retries after which the run was ended."""
    limit = "" if tries is None else f" due to max retries ({tries})"
    return f"Agent {agent} failed to complete task {task_id}{limit}: {describe(error)}"


def describe(error: BaseException) -> str:
    """`error` in one line: the message, with the type's name where the message alone would not say enough."""
    text = hide_secrets(error_text(error))
    message = text.partition(": ")[2]
    return message if message and type(error).__module__.startswith("factorial") else text
