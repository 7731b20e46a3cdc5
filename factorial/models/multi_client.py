"""Keys that are given in code: `Agent(client=MultiClient(openai_api_key=...))`.

Where the environment has the keys, nobody needs one. A key that is given here goes to its provider's address and
nowhere else: it is not put into the environment, into Redis, or into a message. Worker processes make the client
anew when they import the agent, so it should read its keys from wherever they are kept.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from factorial._core.redact import remember_secret
from factorial.errors import ConfigError
from factorial.models.catalogue import anthropic, openai, xai
from factorial.models.complete import complete
from factorial.models.fallback import AnyModel, FallbackModels
from factorial.models.model import Model
from factorial.models.provider import Provider
from factorial.models.request import ModelRequest
from factorial.models.settings import ResolvedModelSettings, ToolChoice

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

__all__ = ["MultiClient", "refuse_http_client"]


class MultiClient:
    """One way to several providers.

    Parameters:
        openai_api_key, xai_api_key, anthropic_api_key: each beats the environment's.
        timeout: seconds without an answer after which a call has failed; beats the agent's `request_timeout`.
        max_connections, max_keepalive_connections: accepted, and not needed: connections are opened as calls need
            them, and shared by all agents of a process.
        http_client: refused with `ConfigError`, since it could not be shared.
    """

    def __init__(
        self,
        openai_api_key: str | None = None,
        xai_api_key: str | None = None,
        anthropic_api_key: str | None = None,
        http_client: Any = None,
        max_connections: int | None = None,
        max_keepalive_connections: int | None = None,
        timeout: float | None = None,
    ) -> None:
        refuse_http_client("MultiClient", http_client)
        if timeout is not None and not timeout > 0:
            raise ConfigError(f"MultiClient: timeout={timeout!r}: use seconds above 0")
        for key in (openai_api_key, xai_api_key, anthropic_api_key):
            remember_secret(key)
        given = {openai: openai_api_key, xai: xai_api_key, anthropic: anthropic_api_key}
        self._keyed: dict[Provider, Provider] = {
            provider: replace(provider, key=key) for provider, key in given.items() if key
        }
        self.timeout = timeout

    def with_keys(self, model: AnyModel) -> AnyModel:
        """`model`, with the key for its provider, if it was given here."""
        if not self._keyed:
            return model
        if isinstance(model, FallbackModels):
            return FallbackModels(tuple(self._with_key(one) for one in model.models))
        return self._with_key(model)

    def _with_key(self, model: Model) -> Model:
        keyed = self._keyed.get(model.provider)
        if keyed is None:
            return model
        equipped = copy(model)  # not `replace`: a model may be of a class of its own
        object.__setattr__(equipped, "provider", keyed)
        return equipped

    async def completion(
        self,
        model: AnyModel,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: ToolChoice | None = None,
        max_completion_tokens: int | None = None,
        temperature: float | None = None,
        stream: bool = False,
        parallel_tool_calls: bool | None = None,
        response_format: Mapping[str, Any] | None = None,
        **further: Any,
    ) -> "ChatCompletion":
        """One model call, for an agent's own `completion`. `further` goes into the request's body as it is.

        Raises a `ModelError`; `ConfigError` for `stream=True`, which is the agent's (`Agent(stream=True)`).
        """
        if stream:
            raise ConfigError(
                "MultiClient.completion(stream=True): give the agent stream=True; it publishes the pieces as "
                "progress_update_completion_chunk, and returns the whole answer"
            )
        request = ModelRequest(
            messages=messages,
            tools=tools or (),
            settings=ResolvedModelSettings(temperature, max_completion_tokens, tool_choice, parallel_tool_calls),
            timeout=self.timeout or 120.0,
            extra=further if response_format is None else {"response_format": response_format, **further},
        )
        return await complete(self.with_keys(model), request)

    async def close(self) -> None:
        """Nothing is left to close: connections are the event loop's, and close with it."""


def refuse_http_client(where: str, http_client: object) -> None:
    """Raise `ConfigError` for an HTTP client of the user's: a process's agents share their connections."""
    if http_client is not None:
        raise ConfigError(
            f"{where}: http_client is not taken: the agents of a process share their connections. For a time-out use "
            "request_timeout=..., for a proxy the variable HTTPS_PROXY, for certificates SSL_CERT_FILE"
        )
