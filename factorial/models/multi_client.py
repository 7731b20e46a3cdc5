"""Keys that are passed in code: `Agent(client=MultiClient(openai_api_key=...))`, and clients of the user's own.

If the keys are in the environment, no client is needed. A key that is passed here is sent to its provider's address
only. It is not put into the environment, into Redis or into messages. Worker processes create the client when they
import the agent, so the code should read the keys from where they are kept.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import TypeIs  # typing has it from Python 3.13 on

from factorial._core.redact import remember_secret
from factorial.errors import ConfigError
from factorial.models.catalogue import anthropic, fireworks, openai, vercel, xai
from factorial.models.complete import complete
from factorial.models.conversation import plain
from factorial.models.fallback import AnyModel, FallbackModels
from factorial.models.model import Model
from factorial.models.provider import Provider, key_flaw
from factorial.models.request import ModelRequest
from factorial.models.settings import ResolvedModelSettings, ToolChoice

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

__all__ = ["ModelClient", "MultiClient", "ask_client", "is_own_client", "refuse_http_client"]


class ModelClient(Protocol):
    """Anything that asks models in a way of its own, such as a fake one in a test."""

    @property
    def completion(self) -> Callable[..., Awaitable[Any]]:
        """Called with the keywords `model`, `messages`, `tools`, `temperature`, `max_completion_tokens`, `tool_choice`
        and `parallel_tool_calls`. It returns a `ChatCompletion`."""
        ...


class MultiClient:
    """Keys and a timeout for the calls of an agent.

    Parameters:
        openai_api_key, xai_api_key, anthropic_api_key, fireworks_api_key, ai_gateway_api_key: keys that take
            precedence over the environment's.
        timeout: seconds without an answer after which a call has failed. It takes precedence over the agent's
            `request_timeout`.
        max_connections, max_keepalive_connections: accepted and ignored. Connections are opened as needed, and shared
            by all agents of a process.
        http_client: rejected, because it could not be shared.

    Raises `ConfigError` that names the parameter.
    """

    def __init__(
        self,
        openai_api_key: str | None = None,
        xai_api_key: str | None = None,
        anthropic_api_key: str | None = None,
        fireworks_api_key: str | None = None,
        ai_gateway_api_key: str | None = None,
        http_client: Any = None,
        max_connections: int | None = None,
        max_keepalive_connections: int | None = None,
        timeout: float | None = None,
    ) -> None:
        refuse_http_client("MultiClient", http_client)
        if timeout is not None and not timeout > 0:
            raise ConfigError(f"MultiClient: timeout={timeout!r}: use seconds above 0")
        given = {
            "openai_api_key": (openai, openai_api_key),
            "xai_api_key": (xai, xai_api_key),
            "anthropic_api_key": (anthropic, anthropic_api_key),
            "fireworks_api_key": (fireworks, fireworks_api_key),
            "ai_gateway_api_key": (vercel, ai_gateway_api_key),
        }
        for parameter, (_, key) in given.items():
            remember_secret(key)
            if flaw := key_flaw(key or ""):
                raise ConfigError(
                    f"MultiClient: {parameter} is not a key: {flaw}. Keys are printable ASCII without spaces: copy the "
                    "key again"
                )
        self._keyed: dict[Provider, Provider] = {
            provider: replace(provider, key=key) for provider, key in given.values() if key
        }
        self.timeout = timeout

    def with_keys(self, model: AnyModel) -> AnyModel:
        """`model`, with the key for its provider if one was passed here."""
        if not self._keyed:
            return model
        if isinstance(model, FallbackModels):
            return FallbackModels(tuple(self._with_key(one) for one in model.models))
        return self._with_key(model)

    def _with_key(self, model: Model) -> Model:
        keyed = self._keyed.get(model.provider)
        if keyed is None:
            return model
        equipped = copy(model)  # not `replace`: the model may be of a subclass
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
        """One model call, for agents that override `completion`.

        Parameters:
            model: a `Model`, or several made by `fallback_models`.
            messages: the conversation in the chat-completions wire format.
            tools: each a `FunctionTool.param`.
            tool_choice, max_completion_tokens, temperature, parallel_tool_calls: as in `ModelSettings`.
            stream: rejected. Use `Agent(stream=True)`.
            response_format, further: members of the request's body, sent as they are.

        Raises a `ModelError`; `ConfigError` for an invalid setting; `ContextError` if the messages do not serialise.
        """
        if stream:
            raise ConfigError(
                "MultiClient.completion(stream=True): give the agent stream=True; it publishes the chunks as "
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
        """Does nothing: connections belong to the event loop, and are closed with it."""


def is_own_client(client: MultiClient | ModelClient) -> TypeIs[MultiClient]:
    """Whether calls of `client` are ours: it is a `MultiClient`, and no subclass of it asks in a way of its own."""
    return isinstance(client, MultiClient) and type(client).completion is MultiClient.completion


async def ask_client(
    client: ModelClient,
    model: AnyModel,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    settings: ResolvedModelSettings,
) -> "ChatCompletion":
    """The answer of a client of the user's own."""
    answer: ChatCompletion = await client.completion(
        model=model,
        messages=messages if isinstance(client, MultiClient) else plain(messages),
        tools=tools,
        temperature=settings.temperature,
        max_completion_tokens=settings.max_completion_tokens,
        tool_choice=settings.tool_choice,
        parallel_tool_calls=settings.parallel_tool_calls,
    )
    return answer


def refuse_http_client(where: str, http_client: object) -> None:
    """Raise `ConfigError` if the user passed an HTTP client. The agents of a process share their connections."""
    if http_client is not None:
        raise ConfigError(
            f"{where}: http_client is not supported: the agents of a process share their connections. For a timeout "
            "use request_timeout=..., for a proxy the variable HTTPS_PROXY, for certificates SSL_CERT_FILE"
        )
