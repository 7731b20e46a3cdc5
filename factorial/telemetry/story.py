"""The story of a task, as the log tells it: one line for each step of its life (checklist I10).

    event        level     when
    enqueued     debug     it was stored and queued; told by the client
    cancelling   debug     somebody has asked for its end, and `status` is what it had then; told by the client
    started      info      a worker has taken it up for the first time
    resumed      info      a worker has taken it up again: after a retry, a release, a crash, or what it waited for
    retried      warning   a turn failed, and will be tried again after `delay` seconds
    released     info      it was given back at a step boundary, and goes on elsewhere
    parked       info      it waits for results from outside, and holds no worker
    completed    info      it is done, after `turns` turns; `seconds` since it was last taken up
    failed       error     it is over
    cancelled    info      it is over
    reclaimed    warning   its process has died, and it goes on elsewhere
    given_up     error     its process has died, once too often: it is over, with `crash_loop`
    superseded   warning   somebody else has it: what was done here is dropped
    trouble      any       no step of its life, and yet to be known: why it is given back, what could not be written

Each line has `event`, `task_id` and `agent` as fields (`extra` of the logging module), `owner_id`, `turn` and `attempt`
where they are known, and the text tells the same. A turn that goes well writes none.

Nothing here configures logging: whose program it is decides what is shown, and `factorial/supervisor/logs.py` in a
system of ours.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

from factorial._core.redact import hide_secrets
from factorial._core.text import one_line
from factorial.context import ExecutionContext, scope

__all__ = ["Story", "TaskFields", "fields_here"]

logger = logging.getLogger("factorial.task")


class Story:
    """What is told of one task, by whoever has it in hand. `owner_id` may be unknown."""

    __slots__ = ("_begun", "_fields")

    def __init__(self, task_id: str, agent: str, owner_id: str | None = None) -> None:
        self._fields: dict[str, Any] = {"task_id": task_id, "agent": agent}
        if owner_id is not None:
            self._fields["owner_id"] = owner_id
        self._begun = time.monotonic()

    @staticmethod
    def is_wanted(level: int) -> bool:
        """Whether anybody has asked for lines of this level: it may cost something to have what is to be told."""
        return logger.isEnabledFor(level)

    def enqueued(self) -> None:
        """It is in the queue."""
        self._tell(logging.DEBUG, "enqueued", "enqueued")

    def cancelling(self, status: str) -> None:
        """Somebody has asked for its end. `status`: `cancelled` if nobody had it, else it ends with its holder."""
        self._tell(logging.DEBUG, "cancelling", f"asked to end as cancelled, it is {status} now", status=status)

    def taken_up(self, *, turn: int, attempt: int, pickups: int) -> None:
        """A worker begins with it. `pickups`: how many times that has happened; `attempt` at this turn, from 1."""
        self._begun = time.monotonic()
        event = "started" if pickups <= 1 else "resumed"
        again = "" if attempt <= 1 else f", attempt {attempt}"
        text = f"{event} at turn {turn}{again}"
        self._tell(logging.INFO, event, text, turn=turn, attempt=attempt, pickups=pickups)

    def retried(self, error: str, *, turn: int, attempt: int, delay: float) -> None:
        """The turn has failed, and is tried again after `delay` seconds."""
        error = _plain(error)
        text = f"turn {turn} failed, attempt {attempt}; again in {delay:.3g} s: {error}"
        self._tell(logging.WARNING, "retried", text, turn=turn, attempt=attempt, delay=round(delay, 3), error=error)

    def released(self, *, turn: int | None = None) -> None:
        """It was given back, and goes on elsewhere."""
        self._tell(logging.INFO, "released", "given back, to go on elsewhere", **_known(turn=turn))

    def parked(self, *, turn: int, waiting_for: int) -> None:
        """It waits for so many results, and holds no worker until they are there."""
        text = f"parked after turn {turn}, waits for {waiting_for} result{'' if waiting_for == 1 else 's'}"
        self._tell(logging.INFO, "parked", text, turn=turn, waiting_for=waiting_for)

    def completed(self, *, turns: int) -> None:
        """It is done, after so many turns."""
        seconds = round(time.monotonic() - self._begun, 3)
        text = f"completed after {turns} turn{'' if turns == 1 else 's'}, {seconds:.3g} s"
        self._tell(logging.INFO, "completed", text, turns=turns, seconds=seconds)

    def failed(self, error: str, *, turn: int | None = None, attempt: int | None = None) -> None:
        """It is over."""
        error = _plain(error)
        where = "" if turn is None else f" in turn {turn}"
        where += "" if attempt is None or attempt <= 1 else f", attempt {attempt}"
        known = _known(turn=turn, attempt=attempt)
        self._tell(logging.ERROR, "failed", f"failed{where}: {error}", **known, error=error)

    def cancelled(self, *, turn: int | None = None) -> None:
        """It is over."""
        self._tell(logging.INFO, "cancelled", "cancelled", **_known(turn=turn))

    def reclaimed(self, process: str = "", cause: str = "") -> None:
        """`process` has died while it had the task, which goes on elsewhere."""
        self._tell(
            logging.WARNING, "reclaimed", f"taken back from {process or 'a dead process'}, to go on elsewhere",
            **_known(from_process=process or None, cause=cause or None),
        )  # fmt: skip

    def given_up(self, process: str = "") -> None:
        """`process` has died while it had the task, which has done that to too many of them: it is over."""
        text = f"failed with crash_loop: too many processes died with it{f', {process} last' if process else ''}"
        self._tell(logging.ERROR, "given_up", text, **_known(from_process=process or None), error="crash_loop")

    def superseded(self) -> None:
        """Somebody else has it."""
        self._tell(logging.WARNING, "superseded", "somebody else has it now; what was done here is dropped")

    def trouble(self, level: int, text: str, error: BaseException | None = None) -> None:
        """What is no step of its life, and needs to be known. `error` is shown with its traceback."""
        self._tell(level, "trouble", _plain(text), exc_info=error)

    def _tell(self, level: int, event: str, text: str, exc_info: BaseException | None = None, **more: Any) -> None:
        if logger.isEnabledFor(level):
            extra = {"event": event, **self._fields, **more}
            logger.log(level, "%s: %s", self._name, text, extra=extra, exc_info=exc_info, stacklevel=3)

    @property
    def _name(self) -> str:
        fields = self._fields
        owner = f" for {fields['owner_id']}" if "owner_id" in fields else ""
        return one_line(f"task {fields['task_id']} of {fields['agent']}{owner}")


class TaskFields(logging.Filter):
    """Adds the fields of the task that is being executed to every line that is written meanwhile, whoever writes it.

    A filter of a handler. It lets every line pass.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add what is missing."""
        if not hasattr(record, "task_id"):
            record.__dict__.update(fields_here())
        return True


def fields_here() -> Mapping[str, Any]:
    """The fields of the task that is being executed here, as `extra` of a log line; nothing outside of one."""
    execution = ExecutionContext.get()
    if execution is None:
        return {}
    fields: dict[str, Any] = {
        "task_id": execution.task_id,
        "agent": execution.agent_name,
        "owner_id": execution.owner_id,
    }
    if (here := scope.get()) is not None:
        fields |= {"turn": here.turn, "attempt": execution.retries + 1}
    return fields


def _known(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _plain(text: str) -> str:
    return one_line(hide_secrets(text))
