"""What came in place of an answer: an error in the body, a page of HTML, a stream that was not asked for, or nothing
that is known. Called by the transports, with the body of a response that claims success.
"""

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from factorial._core.json import load_json
from factorial._core.text import one_line, printable_text, shorten
from factorial.models.faults import explain_said, unreadable
from factorial.models.view import error_in_choice

if TYPE_CHECKING:
    from factorial.models.model import Model

__all__ = ["checked_body", "chunks_in", "is_event_stream"]

_TAGS = re.compile(r"<(?:style|script).*?</|<[^>]*>", re.DOTALL | re.IGNORECASE)


def checked_body(model: "Model", body: object) -> Mapping[str, Any]:
    """The body of an answer, if it is one. `body` is JSON data, or text.

    Raises the `ModelError` that the body is about, and `TruncatedResponseError` if it is not an answer.
    """
    if isinstance(body, str):
        body = _parsed(model, body)
    if not isinstance(body, Mapping):
        raise unreadable(model, f"it is not a JSON object: {_excerpt(str(body))}")
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    has_message = isinstance(first, Mapping) and isinstance(first.get("message"), Mapping)
    if error := body.get("error") or error_in_choice(body):
        raise explain_said(error, model)
    if not has_message:
        if any(isinstance(body.get(name), str) for name in ("message", "detail", "msg")):
            raise explain_said(dict(body), model)
        raise unreadable(model, f"it holds no message: {_excerpt(str(dict(body)))}")
    return body


def is_event_stream(text: str) -> bool:
    """Whether a body is a stream of events, whatever type the server says it has."""
    return text.startswith(("data:", "event:", ":"))


async def chunks_in(model: "Model", text: str) -> AsyncIterator[Mapping[str, Any]]:
    """The chunks in a body that is a stream of events although none was asked for."""
    for line in text.splitlines():
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data and data != "[DONE]":
            chunk = _parsed(model, data)
            if not isinstance(chunk, Mapping):
                raise unreadable(model, "a part of the stream is not a chunk")
            if error := chunk.get("error"):
                raise explain_said(error, model)
            yield chunk


def _parsed(model: "Model", text: str) -> object:
    try:
        return load_json(printable_text(text))
    except ValueError as error:
        with suppress(ValueError):
            return json.loads(text)  # it takes half of an emoji
        if text.lstrip()[:1] == "<":
            said = _excerpt(_TAGS.sub(" ", text))
            raise unreadable(
                model, f"{model.provider.shown_url} answers with a page of HTML, is the address right? It says: {said}"
            ) from None
        raise unreadable(model, f"it is not JSON ({error}): {_excerpt(text)}") from None


def _excerpt(text: str) -> str:
    return shorten(one_line(" ".join(text.split())), 200)
