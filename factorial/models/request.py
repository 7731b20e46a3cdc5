"""One request to a model, independent of the model and of the protocol that carries it."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from factorial.models.settings import ResolvedModelSettings

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionChunk

__all__ = ["ModelRequest", "OnChunk"]

OnChunk = Callable[["ChatCompletionChunk"], Awaitable[None]]
"""Receives each chunk of a streamed answer. All chunks of one try have the same `id`."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One request. The same object is sent to each model that is tried."""

    messages: Sequence[Mapping[str, Any]]
    """The conversation in the chat-completions wire format, instructions first."""
    tools: Sequence[Mapping[str, Any]] = ()
    """The tools that the model may call, each a `factorial.tools.FunctionTool.param`."""
    settings: ResolvedModelSettings = field(default_factory=ResolvedModelSettings)
    timeout: float = 120.0
    """Seconds without an answer, or without the next chunk, after which a try has failed. No further try starts once
    this many seconds have passed since the call began."""
    stream: bool = False
    """Whether the answer is streamed."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further members of the request's body. They replace members of the same name."""
    call_ids: Collection[str] = ()
    """The ids of the run's earlier tool calls. An answer that uses one of them again gets another one for its call."""
    answers: int | None = None
    """How many answers of the model the conversation holds, including those that `messages` leaves out to fit a context
    window. None: all of them are in `messages`. It is not sent; `factorial.testing.ScriptedModel` reads it."""
