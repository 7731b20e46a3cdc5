"""Whether a server can be trusted with tasks. Checked when a namespace is opened, and by the doctor."""

import re

from redis.exceptions import ResponseError

from factorial.errors import MailboxRefusedError
from factorial.mailbox.transport.commands import Commands

__all__ = ["check_server", "check_version"]

_OLDEST = (7, 0)


async def check_server(commands: Commands, *, url_shown: str, settings: bool = True) -> list[str]:
    """Warnings about the server's version and settings. Empty if all is well.

    `settings`: whether to read them with CONFIG GET, too. A server user that may only read must not run it.

    Raises `MailboxRefusedError` if the server would lose tasks or cannot work: a version before 7.0, an eviction
    policy, a replica that refuses writes.
    """
    try:
        info = _parse(await commands.execute("INFO"))
    except (ResponseError, MailboxRefusedError) as refused:
        # Without INFO nothing is known. The first script shows whether other commands are allowed.
        return [f"{url_shown} does not let us read INFO, so its version and settings are unchecked: {refused}"]
    _check_version(info, url_shown)
    _check_eviction(info, url_shown)
    if info.get("role") == "slave" and info.get("slave_read_only") != "0":
        primary = f"{info.get('master_host')}:{info.get('master_port')}"
        raise MailboxRefusedError(f"{url_shown} is a read-only replica: use the URL of its primary, {primary}")
    if info.get("aof_enabled") == "0" and (risk := await _risk_without_log(commands, settings)):
        return [f"{url_shown} {risk}. Fix it with: CONFIG SET appendonly yes, then CONFIG REWRITE to make it permanent"]
    return []


async def check_version(commands: Commands, *, url_shown: str) -> None:
    """Raise `MailboxRefusedError` if the server is too old. One that does not let us read INFO is taken as it is."""
    try:
        info = _parse(await commands.execute("INFO", "server"))
    except (ResponseError, MailboxRefusedError):
        return
    _check_version(info, url_shown)


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
            f"{url_shown} has maxmemory-policy {policy}: when memory runs short, it would evict tasks and leases. "
            "Fix it with: CONFIG SET maxmemory-policy noeviction"
        )


async def _risk_without_log(commands: Commands, settings: bool) -> str:
    """What a server without an append-only file may lose. Empty if that is unknown."""
    if not settings:
        return "has no append-only file: a crash of the server loses all changes since its last snapshot, or everything"
    try:
        answer = await commands.execute("CONFIG", "GET", "save")
    except (ResponseError, MailboxRefusedError):
        return ""  # a managed server that hides its settings takes care of persistence itself
    if len(answer) == 2 and answer[1]:
        return "keeps its data in snapshots only: a crash of the server loses all changes since the last one"
    return "keeps its data in memory only: a restart of the server loses every task"
