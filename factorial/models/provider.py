"""Providers: who serves models, at which address, and which environment variable holds the key.

    local = Provider(name="local", base_url="http://localhost:8080/v1", api_key_env=None)

Any server that speaks a protocol in `Api` can be a provider. Addresses and keys are read from the environment when a
call is made, so importing an agent needs neither.
"""

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args
from urllib.parse import urlsplit, urlunsplit

from factorial.errors import ConfigError

__all__ = ["Api", "Provider", "key_flaw"]

Api = Literal["chat"]
"""The protocols of model servers. `chat` is OpenAI's chat completions."""


_ECHO: frozenset[str] = frozenset({"reasoning_content", "reasoning_details", "thinking_blocks", "extra_content"})
"""What providers that send it usually want back."""


@dataclass(frozen=True)
class Provider:
    """A server of models. Raises `ConfigError` for an unknown `api`, or an `echo` that is not a set of names."""

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
    echo: frozenset[str] = field(default=_ECHO, kw_only=True)
    """The members of its own answers, and of the tool calls in them, that this provider wants to see again in the next
    request, of those that chat completions do not know. No other provider gets them. The default is for servers that
    reject a conversation without them (DeepSeek, Moonshot, Z.ai, OpenRouter, LiteLLM, Gemini). Pass `echo=()` for a
    server that rejects them, or the names that the server documents."""

    OPENAI: ClassVar["Provider"]
    ANTHROPIC: ClassVar["Provider"]
    XAI: ClassVar["Provider"]
    FIREWORKS: ClassVar["Provider"]
    AI_GATEWAY: ClassVar["Provider"]

    def __post_init__(self) -> None:
        if self.api not in get_args(Api):
            raise ConfigError(f"provider {self.name!r}: api={self.api!r}: use one of {', '.join(get_args(Api))}")
        echo: object = self.echo
        if isinstance(echo, str) or not isinstance(echo, Iterable) or not all(isinstance(name, str) for name in echo):
            raise ConfigError(
                f'provider {self.name!r}: echo={echo!r}: use a set of names, as in {{"reasoning_content"}}'
            )
        object.__setattr__(self, "echo", frozenset(echo))

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
        """The address for requests. It may have a query. Raises `ConfigError` if it is not an HTTP address."""
        override = os.environ.get(self.base_url_env) if self.base_url_env else None
        url = override or self.base_url
        source = self.base_url_env if override else "base_url"
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"provider {self.name!r}: {source}={url!r} must start with http:// or https://")
        if "#" in url:
            raise ConfigError(f"provider {self.name!r}: {source} has a '#', which no request can have: remove it")
        return url

    @property
    def shown_url(self) -> str:
        """The address for messages: without its query, which may hold a key, and without a password."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def key_flaw(key: str) -> str | None:
    """Why a key cannot be sent in a header: what it holds that no key does. None if it can be sent. The text shows
    nothing of the key but that character."""
    for position, character in enumerate(key.strip(), start=1):
        if not "!" <= character <= "~":
            name = unicodedata.name(character, "a control character").lower()
            return f"character {position} is U+{ord(character):04X} ({name})"
    return None
