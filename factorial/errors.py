"""Every error that Factorial raises, in one tree.

    FactorialError
     ├── ConfigError (ValueError)         a setting, an agent or a tool is not valid as written
     │    └── UnknownModelError           a model name that is in no catalogue
     ├── ContextError (ValueError)        a context does not serialise, or does not fit its class
     │    └── UnreadableContextError      a stored context does not fit the class of the deployed code
     ├── TaskError                        an error about one task
     │    ├── InvalidTaskIdError (ValueError)
     │    ├── TaskNotFoundError           no such task, or it was removed after its time to live
     │    ├── InactiveTaskError           the task has ended: it cannot be steered or cancelled
     │    └── CorruptedTaskDataError      what is stored for the task cannot be read
     ├── BatchNotFoundError               no such batch, or it was removed after its time to live
     ├── MailboxError                     the Redis or Valkey server cannot be used
     │    ├── MailboxUnavailableError     the server does not answer
     │    ├── MailboxRefusedError         the server answers, but cannot be used: password, version, eviction policy
     │    └── MailboxFullError            the server is out of memory
     ├── ModelError                       a model call failed; see `retry_after` and `status`
     │    ├── ModelUnavailableError       the provider cannot be reached, or fails (HTTP 5xx)
     │    ├── RateLimitError              the provider limits the rate of requests
     │    ├── TruncatedResponseError      a streamed answer ended early
     │    └── ModelRefusedError           the provider rejects the request: key, model name, bad request
     ├── RetryableError                   raise it in an agent or a tool: the turn is retried, with backoff
     │    └── InvalidLLMResponseError     raise it to reject a model's answer: the model is asked again
     ├── FatalAgentError                  raise it in an agent or a tool: the run fails at once
     │    ├── MaxTurnsError               the run did not end within `max_turns`
     │    ├── ContextWindowError          the request does not fit into `context_window_limit`
     │    ├── IncompleteAnswerError       the model's answer was cut, blocked by a filter, or refused
     │    └── OutputError                 the model gave no valid output within `output_retries`
     ├── TurnTimeoutError                 a turn took longer than `turn_timeout`
     └── SupervisionError                 a process could not be started, or the tree gave up

A message says what happened, names the option, the id or the file, and says what to do.
"""

from typing import Any


class FactorialError(Exception):
    """The root of the tree. Catch it to catch every error that Factorial raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        """An error is copied and pickled whatever the parameters of its class."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(of: type[FactorialError], args: tuple[Any, ...], attributes: dict[str, Any]) -> FactorialError:
    error = of.__new__(of, *args)
    error.__dict__.update(attributes)
    return error


class ConfigError(FactorialError, ValueError):
    """A setting, an agent or a tool is not valid as written. Nothing was started or stored."""


class UnknownModelError(ConfigError):
    """The name of a model is in no catalogue."""


class ContextError(FactorialError, ValueError):
    """A context does not serialise to JSON, or stored data does not fit the context class."""


class UnreadableContextError(ContextError):
    """A stored context does not fit the context class of the code that is deployed now. Other code may read it."""


class TaskError(FactorialError):
    """An error about one task. `task_id` is its id."""

    def __init__(self, task_id: str, message: str) -> None:
        super().__init__(message)
        self.task_id = task_id


class InvalidTaskIdError(TaskError, ValueError):
    """The given id is not valid as the id of a task."""

    def __init__(self, task_id: object) -> None:
        shown = repr(task_id)[:80]
        super().__init__(
            str(task_id),
            f"{shown} is not a task id: use 1 to 128 letters, digits, '-', '_', '.' or ':'",
        )


class TaskNotFoundError(TaskError):
    """No task has this id, or the task was removed after its time to live."""

    def __init__(self, task_id: str) -> None:
        super().__init__(
            task_id,
            f"there is no task {task_id!r}: it was never enqueued in this namespace, "
            "or it ended and its time to live is over",
        )


class InactiveTaskError(TaskError):
    """The task has ended, and cannot be steered or cancelled. `status` is how it ended."""

    def __init__(self, task_id: str, status: str) -> None:
        super().__init__(task_id, f"task {task_id!r} has ended ({status}): it cannot be steered or cancelled any more")
        self.status = status


class CorruptedTaskDataError(TaskError):
    """What is stored for the task cannot be read."""


class BatchNotFoundError(FactorialError):
    """No batch has this id, or the batch was removed after its time to live."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(
            f"there is no batch {batch_id!r}: it was never enqueued in this namespace, or its tasks have ended and its "
            "time to live is over"
        )
        self.batch_id = batch_id


class MailboxError(FactorialError):
    """The Redis or Valkey server cannot be used."""


class MailboxUnavailableError(MailboxError):
    """The server does not answer: it is down, starting, or unreachable."""


class MailboxRefusedError(MailboxError):
    """The server answers, but cannot be used: wrong password, version too old, or a policy that would lose tasks."""


class MailboxFullError(MailboxError):
    """The server is out of memory. Nothing was stored."""


class ModelError(FactorialError):
    """A model call failed. The turn is retried.

    `retry_after`: seconds that the provider asks to wait, or None. `status`: the HTTP status, or None if there was no
    answer.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.status = status


class ModelUnavailableError(ModelError):
    """The provider cannot be reached, or answers that it fails (HTTP 5xx). That is not the task's fault."""


class RateLimitError(ModelError):
    """The provider limits the rate of requests (HTTP 429)."""


class TruncatedResponseError(ModelError):
    """A streamed answer ended before the model had finished. The part that arrived is dropped."""


class ModelRefusedError(ModelError):
    """The provider rejects this request, and would reject it again. It is not retried."""


class RetryableError(FactorialError):
    """Raise it in an agent or a tool to have the turn retried after a backoff.

    Finished steps are recalled and not repeated. A step that raises is not finished: raise this in `completion` to
    reject an answer and ask the model again.
    """


class InvalidLLMResponseError(RetryableError):
    """Raise it in `validate_completion` to reject a model's answer: the model is asked again, after a backoff."""


class FatalAgentError(FactorialError):
    """Raise it in an agent or a tool to end the run as failed, without a retry."""


class MaxTurnsError(FatalAgentError):
    """The run did not end within `max_turns` turns."""


class ContextWindowError(FatalAgentError):
    """The request takes more tokens than `context_window_limit`, or than the model's window."""


class IncompleteAnswerError(FatalAgentError):
    """The model's answer is not what it would have said: cut at the token limit, blocked by a filter, or refused.

    `finish_reason`: `length`, `content_filter` or `refusal`. `text`: what there is of the answer, or the refusal.
    """

    def __init__(self, message: str, *, finish_reason: str, text: str) -> None:
        super().__init__(message)
        self.finish_reason = finish_reason
        self.text = text


class OutputError(FatalAgentError):
    """The model did not give a valid output of the agent's `output_type` within `output_retries` corrections."""


class TurnTimeoutError(FactorialError):
    """A turn took longer than `turn_timeout`. It is retried."""


class SupervisionError(FactorialError):
    """A child process could not be started, or the tree gave up after too many restarts."""
