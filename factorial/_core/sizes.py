"""The sizes that values may have.

No model reads a query, a result of a tool or an output of `MOST_BYTES`. A larger one would take the server's memory
several times over, and an event with a larger output would exceed what Redis buffers for a subscriber.
"""

__all__ = ["MAX_VALUE_BYTES", "MOST_BYTES", "byte_length", "too_large"]

MAX_VALUE_BYTES = 64 * 1024 * 1024
"""Bytes of any stored value as JSON: a field of a context, a message, the result of a step."""

MOST_BYTES = 16 * 1024 * 1024
"""Bytes of a query, a result of a tool or an output: of its text in UTF-8, or of its JSON."""


def byte_length(text: str) -> int:
    """The bytes of `text` in UTF-8; for text that is certainly within the limit, its length in characters."""
    return len(text) if 4 * len(text) <= MOST_BYTES else len(text.encode(errors="replace"))


def too_large(what: str, size: int, most: int = MOST_BYTES) -> str:
    """The message about `what` that takes `size` bytes."""
    return (
        f"{what} takes {size} bytes, and {most} is the most: keep large data elsewhere, and use a reference to it, "
        "such as a path or a URL"
    )
