"""Providers: who serves models, at which address, and which environment variable holds the key.

    local = Provider(name="local", base_url="http://localhost:8080/v1", api_key_env=None)

Any server that speaks a protocol in `Api` can be a provider. Addresses and keys are read from the environment when a
call is made, so importing an agent needs neither.
"""

import os
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from factorial.errors import ConfigError

__all__ = ["Api", "Provider"]

Api = Literal["chat"]
"""The protocols of model servers. `chat` is OpenAI's chat completions."""


@dataclass(frozen=True)
class Provider:
    """A server of models. Raises `ConfigError` for an unknown `api`."""

    name: str
    base_url: str
    """The address in front of the protocol's paths, such as `https://api.openai.com/v1`."""
    api_key_env: str | None
    """The environment variable that holds the key; None for a server that needs no key."""
    base_url_env: str | None = None
    """An environment variable that replaces `base_url` if it is set."""
    key: str | None = field(default=None, repr=False, kw_only=True)
    """A key that was passed in code (`MultiClient`). It takes precedence over the environment."""
    api: Api = field(default="chat", kw_only=True)
    """The protocol that the server speaks. It selects the transport."""

    OPENAI: ClassVar["Provider"]
    ANTHROPIC: ClassVar["Provider"]
    XAI: ClassVar["Provider"]
    FIREWORKS: ClassVar["Provider"]
    AI_GATEWAY: ClassVar["Provider"]

    def __post_init__(self) -> None:
        if self.api not in get_args(Api):
            raise ConfigError(f"provider {self.name!r}: api={self.api!r}: use one of {', '.join(get_args(Api))}")

    @property
    def value(self) -> str:
        """`name`, for programs of nfactorial 0.1.x, in which providers were members of an enumeration."""
        return self.name

    @property
    def api_key(self) -> str | None:
        """The key: `key` if it was passed, else the environment's, else None."""
        key = self.key or (os.environ.get(self.api_key_env) if self.api_key_env else None)
        # With a line end in the key, the HTTP library would reject the header, and its error would show the key.
        return (key or "").strip() or None

    @property
    def lacks_key(self) -> bool:
        """Whether a key is needed and missing."""
        return self.api_key_env is not None and self.api_key is None

    @property
    def url(self) -> str:
        """The address for requests. Raises `ConfigError` if it is not an HTTP address."""
        override = os.environ.get(self.base_url_env) if self.base_url_env else None
        url = override or self.base_url
        if not url.startswith(("http://", "https://")):
            source = self.base_url_env if override else "base_url"
            raise ConfigError(f"provider {self.name!r}: {source}={url!r} must start with http:// or https://")
        return url
