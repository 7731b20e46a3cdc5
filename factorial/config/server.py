"""Settings of the connection to the Redis or Valkey server, and the check of its URL."""

import os
import re
from urllib.parse import quote

from factorial._core.urls import ServerURL
from factorial.config.bounds import Pause, Seconds
from factorial.config.validated import settings
from factorial.errors import ConfigError

__all__ = ["RedisConfig", "check_url", "redis_url"]

_SCHEMES = (
    "redis", "rediss", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel", "unix", "embedded",
)  # fmt: skip
_NAMESPACE = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_DATABASE = re.compile(r"(/[0-9]*)?")
_SERVICE_DATABASE = re.compile(r"/[^/@]+(/[0-9]*)?")  # with an "@", it is the rest of a password that has a slash


@settings
class RedisConfig:
    """Where the server is, and how it is reached."""

    url: str = ""
    """redis://, rediss://, unix:// or embedded:DIR (a Valkey that Factorial starts, with its data in DIR).
    Redis Cluster: one or several of its nodes, redis://HOST:PORT,HOST:PORT. Sentinel:
    redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DATABASE.
    Empty: `REDIS_URL`, else `REDIS_HOST`, `REDIS_PORT`, `REDIS_DB` and `REDIS_PASSWORD`, else localhost:6379."""
    namespace: str = "factorial"
    """First part of every key: letters, digits, and `_ . : -`. Systems with different namespaces are separate."""
    timeout: Seconds = 5.0
    """Seconds to wait for a connection or an answer."""
    retry_for: Pause = 10.0
    """Seconds for which a command is retried while the server cannot be reached."""

    def __post_init__(self) -> None:
        if self.url:
            check_url("url", self.url)
        if not _NAMESPACE.fullmatch(self.namespace):
            raise ValueError(f"namespace={self.namespace!r}: use 1 to 64 letters, digits, '_', '.', ':' or '-'")

    @property
    def resolved_url(self) -> str:
        """`url`, or the address that the environment gives. Raises `ConfigError` if that one is not valid."""
        if self.url:
            return self.url
        name, url = "REDIS_URL", os.environ.get("REDIS_URL") or ""
        if not url:
            name = "REDIS_HOST and REDIS_PORT"
            url = redis_url(
                host=os.environ.get("REDIS_HOST") or "localhost",
                port=os.environ.get("REDIS_PORT") or 6379,
                db=os.environ.get("REDIS_DB") or 0,
                password=os.environ.get("REDIS_PASSWORD"),
            )
        try:
            check_url(name, url)
        except ValueError as invalid:
            raise ConfigError(f"in the environment, {invalid}") from None
        return url


def redis_url(
    *, host: str, port: int | str, db: int | str = 0, username: str | None = None, password: str | None = None
) -> str:
    """The URL of a server whose address is given in parts."""
    credentials = f"{quote(username or '', safe='')}:{quote(password, safe='')}@" if password else ""
    return f"redis://{credentials}{host}:{port}/{db}"


def check_url(name: str, url: str) -> None:
    """Check the URL in the setting `name`. Raises `ValueError`; its message never shows a password."""
    scheme, separator, rest = url.partition(":")
    if scheme not in _SCHEMES or not separator or not rest.removeprefix("//"):
        known = "redis://, rediss://, redis+cluster://, redis+sentinel://, unix:// or embedded:DIR"
        # Anything but the characters of a scheme may be a password.
        found = f"; this one begins with {scheme[:20]!r}" if re.fullmatch("[a-z+]+", scheme) else ""
        raise ValueError(f"{name}: begin it with {known}{found}")
    if scheme == "unix":
        _check_socket(name, url)
    elif scheme != "embedded":
        _check_hosts_and_path(name, url)


def _check_socket(name: str, url: str) -> None:
    try:
        hosts = ServerURL.parse(url).hosts
    except ValueError:
        hosts = ()
    if hosts != (("", None),):
        raise ValueError(f"{name}: write it as unix://USER:PASSWORD@/PATH, with a slash in the password as %2F")


def _check_hosts_and_path(name: str, url: str) -> None:
    scheme = url.partition(":")[0]
    of_sentinels = scheme.endswith("+sentinel")
    try:
        path = ServerURL.parse(url).path
    except ValueError:
        path = None
    if path is not None and (_SERVICE_DATABASE if of_sentinels else _DATABASE).fullmatch(path):
        return
    if of_sentinels:
        raise ValueError(
            f"{name}: write it as {scheme}://USER:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/DATABASE: the addresses of the "
            "sentinels, and the name of the service that they watch (often mymaster)"
        )
    raise ValueError(
        f"{name}: write it as {scheme}://USER:PASSWORD@HOST:PORT/DATABASE, the last two as numbers; several nodes of a "
        "cluster as HOST:PORT,HOST:PORT"
    )
