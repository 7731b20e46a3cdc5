"""Standard output and standard error of a child, with the child's name on each line.

This covers `print()` and warnings. What C code and other programs write to the descriptors is not changed, and neither
are bytes written to `buffer`.
"""

import io
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, TextIO

from factorial._core.redact import hide_secrets

__all__ = ["NamedLines"]


class NamedLines(io.TextIOBase):
    """A text stream that writes whole lines to another one: with `name` in front, or as `render` returns them.

    `print` writes a line in several pieces. They are collected per thread, so that lines of threads do not mix.
    `flush()` ends an incomplete line, so that it is visible at once, and carries the name.
    """

    def __init__(self, stream: TextIO, name: str, render: Callable[[str], str] | None = None) -> None:
        self._stream = stream
        self._render = render or (lambda line: f"{name} | {hide_secrets(line)}")
        self._writing = threading.RLock()
        self._incomplete = threading.local()

    def write(self, text: str, /) -> int:
        """Write the lines that `text` completes, and keep the rest. Raises the errors of the other stream."""
        *lines, self._incomplete.line = (self._line + text).split("\n")
        if lines:
            self._put(lines)
        return len(text)

    def flush(self) -> None:
        """Write the incomplete line of this thread as a line."""
        if line := self._line:
            self._incomplete.line = ""
            self._put([line])

    def _put(self, lines: list[str]) -> None:
        with self._writing:
            self._stream.write("".join(f"{self._render(line)}\n" for line in lines))
            self._stream.flush()

    @property
    def _line(self) -> str:
        return getattr(self._incomplete, "line", "")

    @property
    def buffer(self) -> BinaryIO:
        """The binary stream below. What is written to it carries no name."""
        return self._stream.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has a plain attribute
        """That of the other stream."""
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]  # typeshed has a plain attribute
        """That of the other stream."""
        return self._stream.errors

    def fileno(self) -> int:
        """That of the other stream."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """That of the other stream."""
        return self._stream.isatty()

    def writable(self) -> bool:
        """Always true."""
        return True

    def __getattr__(self, name: str) -> Any:
        """Any other attribute of a standard stream (`reconfigure`, `mode`, ...)."""
        return getattr(self._stream, name)
