"""The body of a chat-completions request."""

from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticSerializationError

from factorial._core.json import dump_json
from factorial.errors import ContextError
from factorial.models.conversation import sendable

if TYPE_CHECKING:
    from factorial.models.model import Model
    from factorial.models.request import ModelRequest

__all__ = ["request_body"]


def request_body(model: "Model", request: "ModelRequest") -> bytes:
    """The JSON to send. It holds only what was set. Raises `ContextError` if the conversation does not serialise."""
    settings = request.settings
    body: dict[str, Any] = {
        "model": model.provider_model_id,
        "messages": sendable(request.messages, model.provider),
        "temperature": settings.temperature,
        "max_completion_tokens": settings.max_completion_tokens,
    }
    if request.tools:  # providers reject the other two settings in a request without tools
        body["tools"] = request.tools
        body["tool_choice"] = settings.tool_choice
        body["parallel_tool_calls"] = settings.parallel_tool_calls
    if request.stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    try:
        return dump_json({key: value for key, value in body.items() if value is not None} | dict(request.extra))
    except PydanticSerializationError as error:
        raise ContextError(
            f"the conversation cannot be sent to {model.name!r}: it does not serialise: {error}"
        ) from None
