"""Checks of the options that `Orchestrator` and its methods take."""

import os
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from factorial._core.redact import hide_secrets
from factorial._core.text import shorten, with_article
from factorial.config.server import redis_url
from factorial.errors import ConfigError
from factorial.mailbox.transport.client import url_of_pool

__all__ = ["ServerParts", "check_connections", "check_key", "config_or_default", "server_url"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ServerParts:
    """The address of a server in parts, as the options `redis_host`, `redis_port`, `redis_db` and `redis_password`."""

    host: str | None
    port: int | None
    db: int | None
    password: str | None

    @property
    def given(self) -> list[str]:
        """The options that were given."""
        return [f"redis_{part.name}" for part in fields(self) if getattr(self, part.name) is not None]

    @property
    def url(self) -> str:
        """The URL that the parts make; empty if none was given."""
        if not self.given:
            return ""
        host = self.host or os.environ.get("REDIS_HOST") or "localhost"
        return redis_url(host=host, port=self.port or 6379, db=self.db or 0, password=self.password)


def server_url(url: str | None, parts: ServerParts, pool: Any) -> str:
    """The server's URL from the options that give it; empty if none does. Raises `ConfigError` if they conflict."""
    if url is not None and parts.given:
        raise ConfigError(f"redis_url and {parts.given[0]} exclude each other: give one of them")
    if pool is None:
        return url or parts.url
    if url is not None or parts.given:
        raise ConfigError(f"redis_pool and {[*parts.given, 'redis_url'][0]} exclude each other: give one of them")
    return url_of_pool(pool)


def check_connections(most: object) -> None:
    """Check the option `redis_max_connections`."""
    if not isinstance(most, int) or most < 1:
        raise ConfigError(f"redis_max_connections={most!r}: use a whole number of at least 1")


def check_key(option: str, key: object) -> None:
    """Check that an API key is text. The message does not show its value."""
    if key is not None and not isinstance(key, str):
        raise ConfigError(f"Orchestrator: {option} is of type {type(key).__name__}: give the key as text")


def config_or_default(place: str, option: str, given: _T | None, kind: type[_T]) -> _T:
    """`given`, or the defaults. Raises `ConfigError` if `given` is not of this kind."""
    if given is None:
        return kind()
    if not isinstance(given, kind):
        shown = hide_secrets(shorten(repr(given), 100))
        raise ConfigError(f"{place}: {option}={shown}: give {with_article(kind.__name__)}")
    return given
