"""Standard output and standard error of a child, line by line with its name: for `print()` and warnings of code that
knows nothing of the processes beside it.

What C code and programs write to the descriptors themselves goes out as it is, and so do bytes written to `buffer`.
"""

import io
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, TextIO

from factorial._core.redact import hide_secrets

__all__ = ["NamedLines"]


class NamedLines(io.TextIOBase):
    """A text stream that writes whole lines to another one at once: each after `name`, or as `render` writes it.

    `print` writes a line in several pieces: they are put together for each thread, so that lines of threads do not
    mix. `flush()` ends a line that was begun: what somebody wants to be seen is seen, and under its own name.
    """

    def __init__(self, stream: TextIO, name: str, render: Callable[[str], str] | None = None) -> None:
        self._stream = stream
        self._render = render or (lambda line: f"{name} | {hide_secrets(line)}")
        self._writing = threading.RLock()
        self._begun = threading.local()

    def write(self, text: str, /) -> int:
        """Write the lines that `text` completes, and keep the rest. Raises what the other stream raises."""
        *lines, self._begun.line = (self._line + text).split("\n")
        if lines:
            self._put(lines)
        return len(text)

    def flush(self) -> None:
        """Write what this thread has begun to write, as a line."""
        if line := self._line:
            self._begun.line = ""
            self._put([line])

    def _put(self, lines: list[str]) -> None:
        with self._writing:
            self._stream.write("".join(f"{self._render(line)}\n" for line in lines))
            self._stream.flush()

    @property
    def _line(self) -> str:
        return getattr(self._begun, "line", "")

    # -- as the other stream

    @property
    def buffer(self) -> BinaryIO:
        """The bytes beneath: what is written to it has no name."""
        return self._stream.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has a plain attribute
        """As the other stream has it."""
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]  # typeshed has a plain attribute
        """As the other stream has it."""
        return self._stream.errors

    def fileno(self) -> int:
        """As the other stream has it."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """As the other stream has it."""
        return self._stream.isatty()

    def writable(self) -> bool:
        """It is there to be written to."""
        return True

    def __getattr__(self, name: str) -> Any:
        """Whatever else somebody expects of a standard stream (`reconfigure`, `mode`, ...)."""
        return getattr(self._stream, name)
