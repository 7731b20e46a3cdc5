"""A server in the place of one of those that a URL names."""

from factorial.config import RedisConfig
from factorial.mailbox.transport.connection import Connection
from tests.valkey import ValkeyServer

__all__ = ["is_passed_over"]


async def is_passed_over(stranger: ValkeyServer, url: str) -> None:
    """Start `stranger`, and assert that connecting works although it is the first server that is asked."""
    stranger.start()
    for password in ("", "secret"):
        stranger.command("CONFIG", "SET", "requirepass", password)
        connection = await Connection.open(RedisConfig(url=url.replace("://", f"://127.0.0.1:{stranger.port},")))
        assert await connection.execute("PING") == b"PONG"
        await connection.close()
