"""What the processes of a system write to standard error: one line for each thing, for people or as JSON (I10).

    text    2026-01-02 03:04:05,678 INFO    weather.1-3fa9c2 factorial.task: task 4f... of weather for user123: ...
    json    {"timestamp":"2026-01-02T03:04:05.678Z","level":"info","logger":"factorial.task","message":"task 4f...",
             "process":"weather.1-3fa9c2","event":"completed","task_id":"4f...","agent":"weather",...}

Whatever was given as `extra` is a field of the JSON line. No line holds a key or password (`factorial/redact.py`), and
none can be forged by what an error or an id contains: a text that has several lines goes on after a bar, without what
would do something to a terminal.

Only a process of ours is set up here: the supervisor's, its children's, and a program's that calls
`orchestrator.run()` and has not set up logging itself.
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
from factorial.supervisor.streams import NamedLines

__all__ = ["JsonFormatter", "TextFormatter", "log_to_stderr", "logging_to_stderr", "name_standard_streams"]

_CHATTY = ("httpx", "httpx2", "httpcore", "httpcore2", "openai")
"""Libraries that write a line for each request; to see it, ask for "debug". What they write at debug is not shown
even then: it has the conversation in it."""
_OUR_OWN = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})
_BAR = "\n    | "


class TextFormatter(logging.Formatter):
    """A line for people, with the name of the process."""

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)-7s {process} %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line; what follows it, such as a traceback, after a bar."""
        return _BAR.join(map(one_line, hide_secrets(super().format(record)).splitlines()))


class JsonFormatter(logging.Formatter):
    """A line that is one JSON object."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line. Fields of the record that are not logging's own were given by who wrote it."""
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
    """Log to standard error as `process`, unless logging has been set up already: then do nothing, and give None."""
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
    """The same for the time of a `with` block. As JSON, what is printed meanwhile is, too."""
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
    """Have each line that Python code prints from now on told apart from those of other processes: in JSON, if that
    is how `handler` writes, with the same fields as a line of the log; else after the name of the process."""
    for name, level in (("stdout", logging.INFO), ("stderr", logging.WARNING)):
        if (stream := getattr(sys, name)) is not None:
            as_json = handler if handler is not None and isinstance(handler.formatter, JsonFormatter) else None
            setattr(sys, name, NamedLines(stream, process, _Printed(name, level, as_json) if as_json else None))


class _Printed:
    """A printed line as the handler would write it."""

    def __init__(self, logger: str, level: int, handler: logging.Handler) -> None:
        self._about = {"name": logger, "levelno": level, "levelname": logging.getLevelName(level)}
        self._handler = handler

    def __call__(self, line: str) -> str:
        record = logging.makeLogRecord({**self._about, "msg": line})
        self._handler.filter(record)
        return self._handler.format(record)


def _without_secrets(name: str, value: Any) -> Any:
    """`value`, of the field `name`, as plain data."""
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
