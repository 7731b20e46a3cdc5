"""A model and its provider: plain data, and the way to the transport.

    local = Provider(name="local", base_url="http://localhost:8080/v1", api_key_env=None)
    mine = Model(name="mine", provider=local, provider_model_id="qwen3-8b", context_window=32_768)

Any server that speaks the OpenAI chat-completions protocol is a provider. Keys are read from the environment
when a call is made: to import an agent needs none.
"""

import os
from dataclasses import dataclass, field
from typing import ClassVar

from factorial.errors import ConfigError
from factorial.models.request import Transport
from factorial.models.transports.sdk import OpenAITransport

__all__ = ["Model", "Provider"]

_OPENAI_TRANSPORT = OpenAITransport()


@dataclass(frozen=True)
class Provider:
    """Who serves models, where, and which environment variable holds the key."""

    name: str
    base_url: str
    api_key_env: str | None
    """The variable with the key; None for a server that needs none."""
    base_url_env: str | None = None
    """A variable that, if it is set, replaces `base_url`."""
    key: str | None = field(default=None, repr=False, kw_only=True)
    """A key that was given in code (`MultiClient`), and beats the environment's."""

    OPENAI: ClassVar["Provider"]
    ANTHROPIC: ClassVar["Provider"]
    XAI: ClassVar["Provider"]

    @property
    def api_key(self) -> str | None:
        """The key: the given one, or the environment's, if it has one."""
        key = self.key or (os.environ.get(self.api_key_env) if self.api_key_env else None)
        # A line end after the key would make the HTTP library refuse the header, and show it.
        return (key or "").strip() or None

    @property
    def lacks_key(self) -> bool:
        """Whether a key is needed and missing."""
        return self.api_key_env is not None and self.api_key is None

    @property
    def url(self) -> str:
        """Where requests go. Raises `ConfigError` if that is no HTTP address."""
        override = os.environ.get(self.base_url_env) if self.base_url_env else None
        url = override or self.base_url
        if not url.startswith(("http://", "https://")):
            source = self.base_url_env if override else "base_url"
            raise ConfigError(f"provider {self.name!r}: {source}={url!r} must start with http:// or https://")
        return url


@dataclass(frozen=True)
class Model:
    """One model. Compares by value, and is cheap to make: define your own wherever you like."""

    name: str
    """Its name here, in events and in logs."""
    provider: Provider
    provider_model_id: str = ""
    """Its name at the provider; `name` if it is not given."""
    context_window: int = 128_000
    """Tokens that a request and its answer may have together."""

    def __post_init__(self) -> None:
        if not isinstance(self.provider, Provider):
            raise ConfigError(
                f"model {self.name!r}: provider={self.provider!r} is not a Provider: "
                "take one from factorial.models, or make Provider(name=..., base_url=..., api_key_env=...)"
            )
        if not self.provider_model_id:
            object.__setattr__(self, "provider_model_id", self.name)

    def transport(self) -> Transport:
        """What carries requests to this model. Override it to speak to something else."""
        return _OPENAI_TRANSPORT
