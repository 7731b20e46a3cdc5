"""What is asked of a model, and who can ask it: a request, and the port that carries it.

`Transport` is the port: `client.OpenAITransport` speaks to real providers, `factorial.testing` has one that
plays a script. Called by `complete`, through `Model.transport()`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from factorial.models.settings import ResolvedModelSettings

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    from factorial.models.model import Model

__all__ = ["ModelRequest", "OnChunk", "Transport"]

OnChunk = Callable[["ChatCompletionChunk"], Awaitable[None]]
"""Gets each piece of a streamed answer. All pieces of one try carry the same `id`."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One request, the same for every model that it may be sent to."""

    messages: Sequence[Mapping[str, Any]]
    """The conversation in the chat-completions wire format, instructions first."""
    tools: Sequence[Mapping[str, Any]] = ()
    """The tools on offer, as `factorial.tools.FunctionTool.param` describes them."""
    settings: ResolvedModelSettings = field(default_factory=ResolvedModelSettings)
    timeout: float = 120.0
    """Seconds without an answer, or without the next piece of one, after which a try has failed. No further
    try begins once so many seconds are over."""
    stream: bool = False
    """Whether the answer comes in pieces."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else goes into the request's body, by its name there."""
    answers: int | None = None
    """How many answers of the model the conversation holds, also those that `messages` goes without. It is not sent.
    None: those in `messages` are all."""


class Transport(Protocol):
    """Carries one request to one model, once. It neither retries nor falls back."""

    async def create(self, model: "Model", request: ModelRequest, on_chunk: OnChunk | None) -> "ChatCompletion":
        """The model's whole answer. Raises a `ModelError`."""
        ...
