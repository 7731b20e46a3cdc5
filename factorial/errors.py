"""Every error that Factorial raises on purpose, in one tree.

    FactorialError
     ├── ConfigError (ValueError)         a setting, an agent or a tool is not usable as written
     │    └── UnknownModelError           a model name that is in no catalogue
     ├── ContextError (ValueError)        a context does not serialise, or does not fit its class
     ├── TaskError
     │    ├── InvalidTaskIdError (ValueError)
     │    ├── TaskNotFoundError           no such task, or its time to live is over
     │    ├── InactiveTaskError           the task has ended: it cannot be steered or cancelled
     │    └── CorruptedTaskDataError      what is stored for the task cannot be read
     ├── MailboxError
     │    ├── MailboxUnavailableError     the server does not answer
     │    ├── MailboxRefusedError         the server answers, and will not do: password, version, eviction policy
     │    └── MailboxFullError            the server is out of memory
     ├── ModelError                       a model call failed; `retry_after` and `status` say more
     │    ├── RateLimitError              the provider asks us to slow down
     │    ├── TruncatedResponseError      a stream ended before the model had finished
     │    └── ModelRefusedError           the provider refuses this request for good: key, model name, bad request
     ├── RetryableError                   raise it in an agent or a tool: the turn is tried again, with backoff
     ├── FatalAgentError                  raise it in an agent or a tool: the run ends as failed, at once
     │    ├── MaxTurnsError               the last allowed turn did not end the run
     │    └── ContextWindowError          the request cannot be made to fit `context_window_limit`
     ├── TurnTimeoutError                 a turn took longer than `turn_timeout`
     └── SupervisionError                 a child process could not be started

A message says what happened, which option, id or file is meant, and what to do.
"""


class FactorialError(Exception):
    """The root of the tree: catch this to catch all that Factorial raises on purpose."""


class ConfigError(FactorialError, ValueError):
    """A setting, an agent or a tool cannot be used as written. Nothing was started or stored."""


class UnknownModelError(ConfigError):
    """A model was asked for by a name that is in no catalogue."""


class ContextError(FactorialError, ValueError):
    """A context does not serialise to JSON, or stored data does not fit the context class."""


class TaskError(FactorialError):
    """Something about one task; `task_id` names it."""

    def __init__(self, task_id: str, message: str) -> None:
        super().__init__(message)
        self.task_id = task_id


class InvalidTaskIdError(TaskError, ValueError):
    """The id cannot be the id of a task."""

    def __init__(self, task_id: object) -> None:
        shown = repr(task_id)[:80]
        super().__init__(
            str(task_id),
            f"{shown} is not a task id: use 1 to 128 letters, digits, '-', '_', '.' or ':'",
        )


class TaskNotFoundError(TaskError):
    """No task has this id (any more)."""

    def __init__(self, task_id: str) -> None:
        super().__init__(
            task_id,
            f"there is no task {task_id!r}: it was never enqueued in this namespace, "
            "or it ended and its time to live is over",
        )


class InactiveTaskError(TaskError):
    """The task has ended; it cannot be steered or cancelled any more."""

    def __init__(self, task_id: str, status: str) -> None:
        super().__init__(task_id, f"task {task_id!r} has ended ({status}): it cannot be steered or cancelled any more")
        self.status = status


class CorruptedTaskDataError(TaskError):
    """What is stored for the task cannot be read."""


class MailboxError(FactorialError):
    """The Redis-protocol server that holds the mailboxes cannot be used."""


class MailboxUnavailableError(MailboxError):
    """The server does not answer: it is down, starting, or out of reach."""


class MailboxRefusedError(MailboxError):
    """The server answers, but not for us: wrong password, too old, or a policy that would lose tasks."""


class MailboxFullError(MailboxError):
    """The server is out of memory: nothing was stored."""


class ModelError(FactorialError):
    """A model call failed in a way that may pass.

    `retry_after`: seconds that the provider asks us to wait, if it does. `status`: the HTTP status, if
    there was an answer.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.status = status


class RateLimitError(ModelError):
    """The provider asks us to slow down (HTTP 429)."""


class TruncatedResponseError(ModelError):
    """The answer stopped before the model had finished: there is no answer."""


class ModelRefusedError(ModelError):
    """The provider refuses this request, and would refuse it again: it is not retried."""


class RetryableError(FactorialError):
    """Raised by an agent or a tool whose turn is worth another try: the task backs off and is retried.

    Steps that were finished are not repeated. To have the model asked again over its answer, raise it in `completion`:
    a step that raises is not finished.
    """


class FatalAgentError(FactorialError):
    """Raised by an agent or a tool to end the run as failed, without another try."""


class MaxTurnsError(FatalAgentError):
    """The last turn that `max_turns` allows did not end the run."""


class ContextWindowError(FatalAgentError):
    """What has to be sent to the model takes more tokens than `context_window_limit`, or the model's window, has."""


class TurnTimeoutError(FactorialError):
    """A turn took longer than the worker's `turn_timeout`. It is retried."""


class SupervisionError(FactorialError):
    """A child process could not be started, or the tree gave up."""
