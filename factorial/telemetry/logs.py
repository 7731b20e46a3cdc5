"""Sets up the log of the processes of a system, on standard error: one line per record, as text or as JSON.

    text    2026-01-02 03:04:05,678 INFO    weather.1-3fa9c2 factorial.task: task 4f... of weather for user123: ...
    json    {"timestamp":"2026-01-02T03:04:05.678Z","level":"info","logger":"factorial.task","message":"task 4f...",
             "process":"weather.1-3fa9c2","event":"completed","task_id":"4f...","agent":"weather",...}

Each item of `extra` becomes a field of the JSON line. No line contains a key or password (`_core/redact.py`). The text
of an error or an id cannot forge a line: the further lines of a record begin with a bar, and control characters are
removed.

This is used by the supervisor, its children, and a program that calls `orchestrator.run()` without having set up
logging itself.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, cast

from factorial._core.json import dump_anything, load_json
from factorial._core.redact import hide_secrets, is_secret_name, remember_environment
from factorial._core.text import iso, one_line
from factorial.config import LoggingConfig
from factorial.telemetry.streams import NamedLines

__all__ = ["JsonFormatter", "TextFormatter", "log_to_stderr", "logging_to_stderr", "name_standard_streams"]

_CHATTY = ("httpx", "httpx2", "httpcore", "httpcore2", "openai")
"""Libraries that log a line for each request. It is shown at level "debug" only. Their own debug lines are never shown,
because they contain the conversation."""
_OUR_OWN = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})
_BAR = "\n    | "


class TextFormatter(logging.Formatter):
    """A line of text, with the name of the process, and the id of the task that it is about or comes from."""

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)-7s {process} %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # logging's name
        """The line without a traceback. Factorial's own messages about a task contain its id already."""
        task_id = getattr(record, "task_id", None)
        if task_id and str(task_id) not in record.message:
            record.message = f"task {task_id}: {record.message}"
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        """The line. Further lines, such as a traceback, begin with a bar."""
        return _BAR.join(map(one_line, hide_secrets(super().format(record)).splitlines()))


class JsonFormatter(logging.Formatter):
    """A line that is one JSON object."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line. Attributes of the record that are not logging's own come from `extra`."""
        line: dict[str, Any] = {
            "timestamp": iso(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": hide_secrets(record.getMessage()),
            "process": self._process,
        }
        for name, value in record.__dict__.items():
            if name not in _OUR_OWN and name not in line:
                line[name] = _without_secrets(name, value)
        if record.exc_info:
            line["exception"] = hide_secrets(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = hide_secrets(record.stack_info)
        return dump_anything(line).decode()


def log_to_stderr(process: str, config: LoggingConfig | None = None) -> logging.Handler | None:
    """Log to standard error as `process`. Returns None, and changes nothing, if logging has been set up already."""
    root = logging.getLogger()
    if root.handlers:
        return None
    config = config or LoggingConfig()
    remember_environment()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if config.format == "json" else TextFormatter(process))
    root.addHandler(handler)
    root.setLevel(config.level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING) if root.level > logging.DEBUG else "INFO")
    return handler


@contextmanager
def logging_to_stderr(process: str, config: LoggingConfig) -> Iterator[logging.Handler | None]:
    """The same as `log_to_stderr`, for a `with` block. With JSON, printed lines are written as JSON, too."""
    root, level, streams = logging.getLogger(), logging.getLogger().level, (sys.stdout, sys.stderr)
    handler = log_to_stderr(process, config)
    if handler is not None and config.format == "json":
        name_standard_streams(process, handler)
    try:
        yield handler
    finally:
        if handler is not None:
            sys.stdout, sys.stderr = streams
            root.removeHandler(handler)
            root.setLevel(level)


def name_standard_streams(process: str, handler: logging.Handler | None = None) -> None:
    """Mark each line that Python code prints with the name of the process: as JSON with the fields of a log line if
    `handler` writes JSON, otherwise with the name in front."""
    for name, level in (("stdout", logging.INFO), ("stderr", logging.WARNING)):
        if (stream := getattr(sys, name)) is not None:
            as_json = handler if handler is not None and isinstance(handler.formatter, JsonFormatter) else None
            setattr(sys, name, NamedLines(stream, process, _Printed(name, level, as_json) if as_json else None))


class _Printed:
    """Formats a printed line as the handler formats a record."""

    def __init__(self, logger: str, level: int, handler: logging.Handler) -> None:
        self._about = {"name": logger, "levelno": level, "levelname": logging.getLevelName(level)}
        self._handler = handler

    def __call__(self, line: str) -> str:
        record = logging.makeLogRecord({**self._about, "msg": line})
        self._handler.filter(record)
        return self._handler.format(record)


def _without_secrets(name: str, value: Any) -> Any:
    """`value` of the field `name`, as plain data without secrets."""
    if is_secret_name(name):
        return "***"
    if isinstance(value, str):
        return hide_secrets(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {hide_secrets(str(key)): _without_secrets(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_without_secrets("", item) for item in value]
    return _without_secrets("", cast(Any, load_json(dump_anything(value))))
