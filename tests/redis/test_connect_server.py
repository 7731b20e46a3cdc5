"""Whether a server can be trusted. Real: Valkey with several settings. Fake: a server of another age."""

import pytest
from redis.exceptions import NoPermissionError

from factorial._core.redact import shown_url
from factorial.config import RedisConfig
from factorial.errors import ConfigError, MailboxRefusedError
from factorial.mailbox import Namespace
from factorial.mailbox.transport.connection import Connection
from factorial.mailbox.transport.server import check_server
from tests.valkey import ValkeyServer


class Scripted:
    """Answers INFO as a server of our choice would."""

    def __init__(self, **info: str) -> None:
        self._info = "# Server\r\n" + "".join(f"{name}:{value}\r\n" for name, value in info.items())

    async def execute(self, *args: bytes | str | int | float) -> bytes:
        if args[0] != "INFO":
            raise NoPermissionError("no permissions to run the 'config|get' command")
        return self._info.encode()


async def _check(server: ValkeyServer) -> list[str]:
    connection = await Connection.open(RedisConfig(url=server.url))
    try:
        return await check_server(connection, url_shown=server.url)
    finally:
        await connection.close()


async def test_a_server_that_keeps_its_data_is_fine(own_valkey: ValkeyServer) -> None:
    """With an append-only file."""
    own_valkey.start(appendonly="yes")
    assert await _check(own_valkey) == []


@pytest.mark.parametrize(("save", "where"), [("", "in memory only"), ("60 1000", "in snapshots only")])
async def test_a_server_that_may_lose_what_it_has_acknowledged_is_warned_of(
    own_valkey: ValkeyServer, save: str, where: str
) -> None:
    """The warning has the command that fixes it. Snapshots only are the default of Redis: a crash loses minutes."""
    own_valkey.start(appendonly="no", save=save)
    (warning,) = await _check(own_valkey)
    assert f"{own_valkey.url} keeps its data {where}: " in warning and "CONFIG SET appendonly yes" in warning


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_evicts_is_refused(own_valkey: ValkeyServer, policy: str) -> None:
    """It would evict tasks and leases. The message has the command that fixes it, and the command works."""
    own_valkey.start(appendonly="yes", maxmemory_policy=policy)
    with pytest.raises(MailboxRefusedError, match=f"{policy}.*CONFIG SET maxmemory-policy noeviction"):
        await _check(own_valkey)
    own_valkey.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert await _check(own_valkey) == []


async def test_a_read_only_replica_is_refused(own_valkey: ValkeyServer) -> None:
    """The message names its primary."""
    own_valkey.start(appendonly="yes")
    own_valkey.command("REPLICAOF", "127.0.0.1", "7")
    with pytest.raises(MailboxRefusedError, match=r"read-only replica.*127\.0\.0\.1:7"):
        await _check(own_valkey)


async def test_a_user_who_may_not_publish_is_refused(own_valkey: ValkeyServer) -> None:
    """The message has the right that is missing; with it, all is well."""
    own_valkey.start(appendonly="yes")
    own_valkey.command("ACL", "SETUSER", "worker", "on", ">pass", "~*", "+@all", "resetchannels")
    redis = RedisConfig(url=own_valkey.url.replace("redis://", "redis://worker:pass@"), namespace="n")
    with pytest.raises(MailboxRefusedError, match=r"may not publish.*'n'.*&\{n:0\}:\* \(or allchannels\)"):
        await Namespace.open(redis)
    own_valkey.command("ACL", "SETUSER", "worker", "&{n:0}:*")
    await (await Namespace.open(redis)).close()


async def test_an_unknown_option_is_named(own_valkey: ValkeyServer) -> None:
    own_valkey.start()
    with pytest.raises(
        ConfigError, match=r"there is no option 'sentinal_password'; did you mean 'sentinel_password'\?"
    ):
        await Connection.open(RedisConfig(url=f"{own_valkey.url}?sentinal_password=s3cret"))


async def test_a_database_that_a_single_server_does_not_have(own_valkey: ValkeyServer) -> None:
    own_valkey.start()
    with pytest.raises(MailboxRefusedError, match="out of range: end the URL with the number of a database") as refused:
        await Connection.open(RedisConfig(url=f"{own_valkey.url.removesuffix('/0')}/77"))
    assert "cluster" not in str(refused.value)


async def test_an_old_server_is_refused() -> None:
    """Redis before 7.0; a managed one that hides its settings is taken as it is."""
    with pytest.raises(MailboxRefusedError, match=r"Redis 6.2.14.*7.0 or newer"):
        await check_server(Scripted(redis_version="6.2.14"), url_shown="redis://old")
    assert await check_server(Scripted(redis_version="7.0.0", aof_enabled="0"), url_shown="redis://cloud") == []
    assert await check_server(Scripted(redis_version="10.2.1", aof_enabled="1"), url_shown="redis://new") == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@host:6380/2?password=secret", "redis://host:6380/2"),
        ("rediss://ann:secret@host", "rediss://ann@host"),
        ("unix:///run/r.sock?password=secret", "unix:///run/r.sock"),
        ("redis://:secret@host:notaport", "(a URL that cannot be read)"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    """In every message."""
    assert shown_url(url) == shown
