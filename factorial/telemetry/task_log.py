"""The log of tasks: one line for each change in a task's life, on the logger `factorial.task`.

    event        level     when
    enqueued     debug     the client stored and queued the task
    cancelling   debug     the client asked that the task end as cancelled; `status` is the task's answer
    started      info      a worker claimed the task for the first time
    resumed      info      a worker claimed the task again: after a retry, a release, a crash, or a wait for results
    retried      warning   a turn failed, and will be tried again after `delay` seconds
    deferred     warning   the task waits for something that is away, and spends no retry; logged once, then at debug
    released     info      the worker released the task at a step boundary; it continues in another process
    parked       info      the task is parked, and holds no worker; `awaits` is the number of results that it awaits
    completed    info      the task completed after `turns` turns, `seconds` after it was enqueued; `finish_reason` is
                           why the model's last answer ended
    failed       error     the task failed
    cancelled    info      the task was cancelled
    reclaimed    warning   the task was reclaimed from the dead process `from_process`; it continues in another process
    given_up     error     the task failed with `crash_loop`: too many processes died with it
    superseded   warning   another process holds the task now; what was done in this one is dropped
    problem      any       anything else that an operator should know, such as why a task is released

Each line has the fields `event`, `task_id` and `agent` (`extra` of the logging module); `owner_id`, `turn` and
`attempt` where they are known. Its text says the same. A turn that goes well writes no line.

This module does not configure logging: that is up to the program, or to `factorial/telemetry/logs.py` in a system.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

from factorial._core.redact import hide_secrets
from factorial._core.text import one_line
from factorial.context import ExecutionContext, scope

__all__ = ["TaskFields", "TaskLog", "task_fields"]

_logger = logging.getLogger("factorial.task")


class TaskLog:
    """Writes the lines of one task. `owner_id` may be unknown. `age`: the seconds since the task was enqueued."""

    __slots__ = ("_enqueued_at", "_fields")

    def __init__(self, task_id: str, agent: str, owner_id: str | None = None, *, age: float = 0.0) -> None:
        self._fields: dict[str, Any] = {"task_id": task_id, "agent": agent}
        if owner_id is not None:
            self._fields["owner_id"] = owner_id
        self._enqueued_at = time.monotonic() - age

    @staticmethod
    def is_enabled(level: int) -> bool:
        """Whether lines of this level are logged. Ask before you read from the server for the sake of a line."""
        return _logger.isEnabledFor(level)

    def enqueued(self) -> None:
        """The task was stored and queued."""
        self._write(logging.DEBUG, "enqueued", "enqueued")

    def cancelling(self, status: str) -> None:
        """Its cancellation was requested. `status`: `cancelled` if no process held it, else its holder ends it."""
        self._write(logging.DEBUG, "cancelling", f"cancellation requested, its status is {status}", status=status)

    def claimed(self, *, turn: int, attempt: int, pickups: int, is_deferred: bool = False) -> None:
        """A worker claimed it. `pickups`: how often that has happened; `attempt`: at this turn, from 1. The claims of a
        deferred task are logged at debug."""
        event = "started" if pickups <= 1 else "resumed"
        again = "" if attempt <= 1 else f", attempt {attempt}"
        text = f"{event} at turn {turn}{again}"
        level = logging.DEBUG if is_deferred else logging.INFO
        self._write(level, event, text, turn=turn, attempt=attempt, pickups=pickups)

    def retried(self, error: str, *, turn: int, attempt: int, delay: float) -> None:
        """An attempt at its turn failed. The next one is in `delay` seconds."""
        error = _plain(error)
        text = f"turn {turn} failed (attempt {attempt}), retry in {_shown(delay)} s: {error}"
        self._write(logging.WARNING, "retried", text, turn=turn, attempt=attempt, delay=round(delay, 3), error=error)

    def deferred(self, error: str, *, turn: int, delay: float, is_first: bool) -> None:
        """What its turn needs is away. The next attempt is in `delay` seconds; only the first one is announced."""
        error = _plain(error)
        text = f"turn {turn} is deferred without a retry, next attempt in {_shown(delay)} s: {error}"
        level = logging.WARNING if is_first else logging.DEBUG
        self._write(level, "deferred", text, turn=turn, delay=round(delay, 3), error=error)

    def released(self, *, turn: int | None = None) -> None:
        """Its holder released it."""
        self._write(logging.INFO, "released", "released, to continue in another process", **_known(turn=turn))

    def parked(self, *, turn: int, awaits: int) -> None:
        """It is parked until `awaits` results are there."""
        text = f"parked after turn {turn}, awaits {awaits} result{'' if awaits == 1 else 's'}"
        self._write(logging.INFO, "parked", text, turn=turn, awaits=awaits)

    def completed(self, *, turns: int, finish_reason: str | None = None) -> None:
        """It completed after `turns` turns. `finish_reason`: why the model's last answer ended."""
        seconds = round(time.monotonic() - self._enqueued_at, 3)
        text = f"completed after {turns} turn{'' if turns == 1 else 's'}, {_shown(seconds)} s"
        if finish_reason not in (None, "stop", "tool_calls"):
            text += f", with an incomplete answer: finish_reason {finish_reason}"
        known = _known(finish_reason=finish_reason)
        self._write(logging.INFO, "completed", text, turns=turns, seconds=seconds, **known)

    def failed(self, error: str, *, turn: int | None = None, attempt: int | None = None) -> None:
        """It failed."""
        error = _plain(error)
        where = "" if turn is None else f" in turn {turn}"
        where += "" if attempt is None or attempt <= 1 else f", attempt {attempt}"
        known = _known(turn=turn, attempt=attempt)
        self._write(logging.ERROR, "failed", f"failed{where}: {error}", **known, error=error)

    def cancelled(self, *, turn: int | None = None) -> None:
        """It was cancelled."""
        self._write(logging.INFO, "cancelled", "cancelled", **_known(turn=turn))

    def reclaimed(self, process: str = "", cause: str = "") -> None:
        """It was reclaimed from `process`, which died."""
        text = f"reclaimed from {process or 'a dead process'}, to continue in another process"
        known = _known(from_process=process or None, cause=cause or None)
        self._write(logging.WARNING, "reclaimed", text, **known)

    def given_up(self, process: str = "") -> None:
        """It failed, because too many processes died with it. `process` was the last of them."""
        last = f", the last was {process}" if process else ""
        text = f"failed with crash_loop: too many processes died with it{last}"
        self._write(logging.ERROR, "given_up", text, **_known(from_process=process or None), error="crash_loop")

    def superseded(self) -> None:
        """Another process holds it now."""
        text = "superseded: another process holds it now, and what was done here is dropped"
        self._write(logging.WARNING, "superseded", text)

    def problem(self, level: int, text: str, error: BaseException | None = None) -> None:
        """Anything else that an operator should know. `error` is logged with its traceback."""
        self._write(level, "problem", _plain(text), exc_info=error)

    def _write(self, level: int, event: str, text: str, exc_info: BaseException | None = None, **more: Any) -> None:
        if _logger.isEnabledFor(level):
            extra = {"event": event, **self._fields, **more}
            _logger.log(level, "%s: %s", self._name, text, extra=extra, exc_info=exc_info, stacklevel=3)

    @property
    def _name(self) -> str:
        fields = self._fields
        owner = f" for {fields['owner_id']}" if "owner_id" in fields else ""
        return one_line(f"task {fields['task_id']} of {fields['agent']}{owner}")


class TaskFields(logging.Filter):
    """A filter for handlers that adds the fields of the task that is being executed. It passes all lines."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields, unless the line has those of a task already."""
        if not hasattr(record, "task_id"):
            record.__dict__.update(task_fields())
        return True


def task_fields() -> Mapping[str, Any]:
    """The fields of the task that is being executed, as `extra` of a log line; empty outside of a task."""
    execution_ctx = ExecutionContext.get()
    if execution_ctx is None:
        return {}
    fields: dict[str, Any] = {
        "task_id": execution_ctx.task_id,
        "agent": execution_ctx.agent_name,
        "owner_id": execution_ctx.owner_id,
    }
    if (here := scope.get()) is not None:
        fields |= {"turn": here.turn, "attempt": execution_ctx.retries + 1}
    return fields


def _known(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _shown(seconds: float) -> str:
    """Three digits, and no exponent: `0.0123`, `5.03`, `86400`."""
    return f"{seconds:.0f}" if seconds >= 1000 else f"{seconds:.3g}"


def _plain(text: str) -> str:
    return one_line(hide_secrets(text))
