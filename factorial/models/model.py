"""A model as plain data, and the port through which it is asked.

    mine = Model(name="mine", provider=local, provider_model_id="qwen3-8b", context_window=32_768)

A `Transport` carries a request to a model. The package `transports` registers one for each protocol in `Api`;
`Model.transport()` looks it up when a call is made. So a model knows no transport, and the transports know the models.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from factorial.errors import ConfigError
from factorial.models.provider import Api, Provider
from factorial.models.request import ModelRequest, OnChunk
from factorial.models.view import Origin

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

__all__ = ["Model", "Transport", "register_transport"]


class Transport(Protocol):
    """Carries one request to one model, once. It neither retries nor falls back to another model."""

    async def create(self, model: "Model", request: ModelRequest, on_chunk: OnChunk | None) -> "ChatCompletion":
        """The model's whole answer, with all that the server sent. Raises a `ModelError`.

        `messages` of the request have `provider_data`: see `factorial.models.conversation`.
        """
        ...


_transports: dict[Api, Transport] = {}


def register_transport(api: Api, transport: Transport) -> None:
    """Use `transport` for all providers that speak `api`."""
    _transports[api] = transport


@dataclass(frozen=True)
class Model:
    """One model. Models compare by value. Raises `ConfigError` if `provider` is not a `Provider`."""

    name: str
    """The model's name in Factorial: in events, in logs and for `find_model`."""
    provider: Provider
    provider_model_id: str = ""
    """The model's name at the provider; by default `name`."""
    context_window: int = 128_000
    """The most tokens that a request and its answer may have together."""

    def __post_init__(self) -> None:
        if not isinstance(self.provider, Provider):
            raise ConfigError(
                f"model {self.name!r}: provider={self.provider!r} is not a Provider: "
                "take one from factorial.models, or make Provider(name=..., base_url=..., api_key_env=...)"
            )
        if not self.provider_model_id:
            object.__setattr__(self, "provider_model_id", self.name)

    @property
    def providers(self) -> frozenset[Provider]:
        """Its provider, as a set: `FallbackModels` has several."""
        return frozenset((self.provider,))

    @property
    def origin(self) -> Origin:
        """What is noted of this model's answers."""
        return Origin(self.provider.name, self.provider.api)

    def transport(self) -> Transport:
        """The transport for requests to this model. Override it to carry them in another way."""
        return _transports[self.provider.api]
