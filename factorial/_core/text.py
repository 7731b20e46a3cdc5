"""Text for people: log lines, messages of errors, tables."""

from collections.abc import Sequence
from datetime import UTC, datetime

__all__ = ["error_text", "iso", "listed", "one_line", "printable_text", "safe_repr", "shorten", "with_article"]

_MOST_IN_GROUP = 5


def iso(moment: datetime) -> str:
    """`moment` in ISO 8601, in UTC, with milliseconds: `2026-01-02T03:04:05.678Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def printable_text(text: str) -> str:
    """`text` without what UTF-8 cannot hold: half of a surrogate pair, as in an undecodable file name."""
    return text.encode(errors="replace").decode()


def safe_repr(value: object, limit: int = 200) -> str:
    """`repr(value)`, cut to `limit` characters. A value whose `repr` raises is shown by its type."""
    try:
        return shorten(printable_text(repr(value)), limit)
    except BaseException:  # the user's code: an object that cannot be printed must not fail the message about it
        return f"<{type(value).__name__}>"


def error_text(error: BaseException) -> str:
    """The type of `error` and its message; of an exception group, also those of the errors in it.

    An error whose message cannot be read is shown by its type.
    """
    try:
        message = printable_text(str(error).strip())
    except BaseException:  # the user's code, as above
        message = "(its message cannot be read)"
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, BaseExceptionGroup):
        inner = [error_text(one) for one in error.exceptions[:_MOST_IN_GROUP]]
        text += f" [{'; '.join(inner)}{'; ...' if len(error.exceptions) > _MOST_IN_GROUP else ''}]"
    return text


def shorten(text: str, limit: int) -> str:
    """`text`, cut to `limit` characters, with a note of how many are missing."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit} more characters)"


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names on one line: the first `most` of them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def one_line(text: str) -> str:
    """`text` on one line, without control characters, which would affect a terminal or a log."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else " " for character in text)


def with_article(noun: str) -> str:
    """`a Task`, `an AgentContext`."""
    return f"{'an' if noun[:1] in 'AEIOUaeiou' else 'a'} {noun}"
