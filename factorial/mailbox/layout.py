"""Whether this release can read what a namespace holds: the version of its layout.

Read when a namespace is opened, and by the doctor.
"""

from redis.exceptions import ResponseError

from factorial.errors import MailboxRefusedError
from factorial.mailbox.keys import LAYOUT_VERSION, Keys
from factorial.mailbox.transport.commands import Commands

__all__ = ["check_layout", "read_layout"]


async def read_layout(commands: Commands, keys: Keys) -> bytes | ResponseError | None:
    """The stored version of the namespace's layout, or the error with which the server refused to return it.

    The result is meant for `check_layout`.
    """
    try:
        version: bytes | None = await commands.execute("HGET", keys.layout, "version")
        return version or await commands.execute("HGET", keys.layout_1, "version")
    except ResponseError as refusal:
        return refusal


def check_layout(version: bytes | ResponseError | None, keys: Keys, place: str) -> None:
    """Raise `MailboxRefusedError` unless `version`, the result of `read_layout`, is the one that this release reads.

    `place`: the namespace and its server, for the message. A `version` of None means that the namespace has keys, but
    no version.
    """
    restore = f"HSET {keys.layout} version {LAYOUT_VERSION}"
    if version is None:
        raise MailboxRefusedError(
            f"{place} has keys, but no layout version: {keys.layout} is missing. If this release wrote the keys, "
            f"restore it with: {restore}"
        )
    if isinstance(version, ResponseError):
        if not str(version).startswith("WRONGTYPE"):
            raise version
        raise MailboxRefusedError(
            f"{place}: {keys.layout}, which holds the layout version, was overwritten by a key of another type. "
            f"If this release wrote the other keys, restore it with: DEL {keys.layout}, then {restore}"
        )
    if version != str(LAYOUT_VERSION).encode():
        raise MailboxRefusedError(
            f"{place} has layout {version.decode(errors='replace')}, but this release of Factorial reads layout "
            f"{LAYOUT_VERSION}: use the release that wrote it, or another redis.namespace"
        )
