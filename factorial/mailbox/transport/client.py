"""For programs that use redis-py themselves: the URL of their connection pool, and a client for our server.

Called by the orchestrator.
"""

from typing import Any
from urllib.parse import quote

from redis.asyncio import Redis, RedisCluster

from factorial.config.server import redis_url
from factorial.errors import ConfigError
from factorial.mailbox.transport.route import Route

__all__ = ["RedisClient", "new_client", "url_of_pool"]

RedisClient = Redis | RedisCluster


def url_of_pool(pool: Any) -> str:
    """The URL of the server that `pool` connects to. Raises `ConfigError` if a URL cannot express its options."""
    known: Any = getattr(pool, "connection_kwargs", None)
    kind = getattr(getattr(pool, "connection_class", None), "__name__", "")
    if not isinstance(known, dict) or kind not in ("Connection", "UnixDomainSocketConnection"):
        raise ConfigError(
            f"redis_pool is a {type(pool).__name__} of {kind or 'no'} connections, which a URL cannot express: "
            "give redis_url=..., which takes redis://, rediss:// (TLS), redis+sentinel:// and unix://"
        )
    if known.get("credential_provider") is not None:
        raise ConfigError("redis_pool has a credential_provider: give redis_url=... with user and password")
    user, password, db = known.get("username"), known.get("password"), known.get("db") or 0
    if kind == "Connection":
        host, port = known.get("host") or "localhost", known.get("port") or 6379
        return redis_url(host=host, port=port, db=db, username=user, password=password)
    credentials = f"{quote(user or '', safe='')}:{quote(password, safe='')}@" if password else ""
    return f"unix://{credentials}{known['path']}?db={db}"


def new_client(route: Route) -> RedisClient:
    """A redis-py client for the server of `route`, or for all nodes of its cluster. Replies are text.

    The caller closes it.
    """
    if route.in_cluster:
        return RedisCluster.from_url(route.url, decode_responses=True)
    client: Redis = Redis.from_url(route.url, decode_responses=True)
    return client
