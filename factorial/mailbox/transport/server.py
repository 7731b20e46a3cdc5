"""Whether the server can be trusted with tasks, and whether we read what the namespace holds: asked once, by whoever
opens a mailbox, and by the doctor."""

import re
from typing import Any, Protocol

from redis.exceptions import ResponseError

from factorial.errors import MailboxRefusedError
from factorial.mailbox.keys import LAYOUT_VERSION, Keys

__all__ = ["Commands", "check_layout", "check_server", "read_layout"]


_OLDEST = (7, 0)


class Commands(Protocol):
    """Something that executes commands: a `Connection`, or what a test puts in its place."""

    async def execute(self, *args: bytes | str | int | float) -> Any:
        """The server's answer to one command."""
        ...


async def check_server(commands: Commands, *, url_shown: str, settings: bool = True) -> list[str]:
    """What is not as it should be with the server, in words; empty if all is well.

    `settings`: ask for them, too, which a user of the server who may only read must not.

    Raises `MailboxRefusedError` for what would lose tasks or cannot work: a version before 7.0, an eviction
    policy, a replica that takes no writes.
    """
    try:
        info = _parse(await commands.execute("INFO"))
    except (ResponseError, MailboxRefusedError) as refused:
        # Without INFO nothing is known; the first script shows whether the rest is allowed.
        return [f"{url_shown} does not let us read INFO, so its version and settings are unchecked: {refused}"]
    _check_version(info, url_shown)
    _check_eviction(info, url_shown)
    if info.get("role") == "slave" and info.get("slave_read_only") != "0":
        primary = f"{info.get('master_host')}:{info.get('master_port')}"
        raise MailboxRefusedError(f"{url_shown} is a read-only replica: use the URL of its primary, {primary}")
    if info.get("aof_enabled") == "0" and (risk := await _risk_without_log(commands, settings)):
        return [f"{url_shown} {risk}. Mend it with: CONFIG SET appendonly yes (and CONFIG REWRITE to keep it so)"]
    return []


async def read_layout(commands: Commands, keys: Keys) -> bytes | ResponseError | None:
    """The version of the namespace's layout, for `check_layout`: as it is stored, or why it cannot be read."""
    try:
        version: bytes | None = await commands.execute("HGET", keys.layout, "version")
    except ResponseError as refusal:
        return refusal
    return version


def check_layout(version: bytes | ResponseError | None, keys: Keys, place: str) -> None:
    """Raise `MailboxRefusedError` if what the server answered, when asked for the version, is not ours.

    None: there is none, though the namespace has keys.
    """
    mend = f"HSET {keys.layout} version {LAYOUT_VERSION}"
    if version is None:
        raise MailboxRefusedError(
            f"{place} has keys, and no layout version: {keys.layout} is gone. If this release wrote the keys, put it "
            f"back with: {mend}"
        )
    if isinstance(version, ResponseError):
        if not str(version).startswith("WRONGTYPE"):
            raise version
        raise MailboxRefusedError(
            f"{place}: {keys.layout}, which has the version of the layout, was overwritten by a key of another type. "
            f"If this release wrote the other keys, put it back with: DEL {keys.layout}, then {mend}"
        )
    if version != str(LAYOUT_VERSION).encode():
        raise MailboxRefusedError(
            f"{place} has layout {version.decode(errors='replace')}, and this release of Factorial reads layout "
            f"{LAYOUT_VERSION}: use the release that wrote it, or another redis.namespace"
        )


def _parse(info: bytes) -> dict[str, str]:
    lines = info.decode(errors="replace").splitlines()
    return {name: value for name, found, value in (line.partition(":") for line in lines) if found}


def _check_version(info: dict[str, str], url_shown: str) -> None:
    version = info.get("redis_version", "")
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < _OLDEST:
        raise MailboxRefusedError(f"{url_shown} is Redis {version}: Factorial needs Redis 7.0 or newer, or Valkey")


def _check_eviction(info: dict[str, str], url_shown: str) -> None:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise MailboxRefusedError(
            f"{url_shown} has maxmemory-policy {policy}: when memory runs short it would throw away tasks and leases. "
            "Mend it with: CONFIG SET maxmemory-policy noeviction"
        )


async def _risk_without_log(commands: Commands, settings: bool) -> str:
    """What may be lost without an append-only file."""
    if not settings:
        return "has no append-only file: a crash of the server loses what came after its last snapshot, or everything"
    try:
        answer = await commands.execute("CONFIG", "GET", "save")
    except (ResponseError, MailboxRefusedError):
        return ""  # a managed server that hides its settings looks after its data itself
    if len(answer) == 2 and answer[1]:
        return "keeps its data in snapshots only: a crash of the server loses what came after the last one"
    return "keeps its data in memory only: a restart of the server loses every task"
