"""What the rest of the mailbox needs of a connection."""

from typing import Any, Protocol

__all__ = ["Commands"]


class Commands(Protocol):
    """Something that executes commands: a `Connection`, or what a test uses in its place."""

    async def execute(self, *args: bytes | str | int | float) -> Any:
        """The server's reply to one command."""
        ...
