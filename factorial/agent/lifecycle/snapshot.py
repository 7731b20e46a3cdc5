"""A context as it is stored, and what has changed in it since.

A context is stored as its messages, one by one, and its other fields, one by one, so that a turn writes its new
messages and its changed fields and nothing that grows with the conversation.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, to_json

from factorial._core.json import dump_json, load_json
from factorial.context import AgentContext, ContextType
from factorial.errors import ContextError

__all__ = ["Changes", "ContextSnapshot", "decode_context", "encode_fields", "encode_messages", "readable"]


MAX_VALUE_BYTES = 64 * 1024 * 1024
"""The largest message or field that is stored."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a turn changed."""

    fields: Mapping[str, bytes] = field(default_factory=dict)
    messages: Sequence[bytes] = ()
    """The new messages; or all of them, if `rewritten`."""
    rewritten: bool = False


class ContextSnapshot:
    """What is known to be stored of a context. `fields` is what its fields were read from, if they were."""

    def __init__(self, context: AgentContext, fields: Mapping[str, bytes] | None = None) -> None:
        if fields is None:
            self._fields = encode_fields(context)
        elif any(value[:1] in (b"[", b"{") for value in fields.values()):
            # Written by another process, where a set, or one within an object, may have another order.
            written = encode_fields(context)
            self._fields = {name: written.get(name, value) for name, value in fields.items()}
        else:
            self._fields = dict(fields)
        self._messages = [_copy(message) for message in context.messages]

    def changed_fields(self, context: AgentContext) -> dict[str, bytes]:
        """The fields, messages aside, that differ from the stored ones."""
        stored = self._fields
        return {name: value for name, value in encode_fields(context).items() if stored.get(name) != value}

    def changes(self, context: AgentContext) -> Changes:
        """All that differs. The stored messages are compared by value, which costs little: strings are shared."""
        count = len(self._messages)
        rewritten = context.messages[:count] != self._messages
        messages = encode_messages(context.messages if rewritten else context.messages[count:])
        return Changes(fields=self.changed_fields(context), messages=messages, rewritten=rewritten)

    def stored(self, context: AgentContext, changes: Changes) -> None:
        """Note that `changes` of `context` are stored now."""
        self._fields.update(changes.fields)
        if changes.rewritten:
            self._messages.clear()
        self._messages.extend(_copy(message) for message in context.messages[len(self._messages) :])

    def stored_messages(self, messages: Sequence[dict[str, Any]]) -> None:
        """Note that `messages` are stored now, behind the others."""
        self._messages.extend(_copy(message) for message in messages)

    def restore(self, context: AgentContext) -> None:
        """Make `context` what is stored."""
        self.restore_fields(context, {})
        context.messages = [_copy(message) for message in self._messages]

    def restore_fields(self, context: AgentContext, changed: Mapping[str, bytes]) -> None:
        """Make the fields of `context`, messages aside, what is stored, but for those `changed`."""
        wanted, present = self._fields | dict(changed), encode_fields(context)
        differs = {name for name, value in wanted.items() if present.get(name) != value}
        if differs:  # what is not stored, cannot change, or is as it was stays the same object
            for name, value in decode_context(type(context), wanted, encode_messages(context.messages)):
                if name in differs:
                    setattr(context, name, value)


def encode_fields(context: AgentContext) -> dict[str, bytes]:
    """Each field of `context` but its messages, as JSON. Raises `ContextError` that names the field."""
    return {name: _encode(context, name, value) for name, value in _plain_fields(context).items()}


def _plain_fields(context: AgentContext) -> dict[str, Any]:
    try:
        return context.model_dump(mode="json", exclude={"messages"})
    except (PydanticSerializationError, ValueError, TypeError, RecursionError):
        for name in [*type(context).model_fields, *(context.model_extra or {})]:
            try:
                context.model_dump(mode="json", include={name})
            except (PydanticSerializationError, ValueError, TypeError, RecursionError) as unfit:
                kind = type(getattr(context, name, None)).__name__
                raise ContextError(
                    f"{type(context).__name__}.{name} ({kind}) cannot be stored as JSON: {unfit}. "
                    "Give it a type that pydantic can serialise, or exclude the field"
                ) from None
        raise


def _encode(context: AgentContext, name: str, value: Any) -> bytes:
    try:
        # As strings, infinities and NaN come back as what they were; JSON has no numbers for them.
        encoded = to_json(value, inf_nan_mode="strings")
    except PydanticSerializationError as unfit:
        raise ContextError(f"{type(context).__name__}.{name} cannot be stored as JSON: {unfit}") from None
    if len(encoded) > MAX_VALUE_BYTES:
        raise ContextError(
            f"{type(context).__name__}.{name} takes {len(encoded)} bytes as JSON, and {MAX_VALUE_BYTES} is the most: "
            "keep large data elsewhere, and a reference to it in the context"
        )
    return encoded


def encode_messages(messages: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """Each message as JSON. Raises `ContextError` that names the one that does not fit."""
    encoded = []
    for position, message in enumerate(messages):
        try:
            encoded.append(dump_json(message))
        except (PydanticSerializationError, ValueError, TypeError, RecursionError) as unfit:
            raise ContextError(f"messages[{position}] cannot be stored as JSON: {unfit}") from None
        if len(encoded[-1]) > MAX_VALUE_BYTES:
            raise ContextError(
                f"messages[{position}] takes {len(encoded[-1])} bytes, and {MAX_VALUE_BYTES} is the most"
            )
    return encoded


def decode_context(
    context_class: type[ContextType], fields: Mapping[str, bytes], conversation: Sequence[bytes]
) -> ContextType:
    """The context that was stored in these parts. Raises `ContextError` if it does not fit `context_class`."""
    computed = context_class.model_computed_fields
    members = [dump_json(name) + b":" + value for name, value in fields.items() if name not in computed]
    members.append(b'"messages":[' + b",".join(conversation) + b"]")
    try:
        return context_class.model_validate_json(b"{" + b",".join(members) + b"}", by_name=True)
    except ValidationError as unfit:
        complaints = "; ".join(
            f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in unfit.errors(include_input=False)
        )
        raise ContextError(f"the stored context does not fit {context_class.__name__}: {complaints}") from None


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Within it, stored data is read. Raises `ContextError` that names `what` if it was damaged: no other try helps."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as damage:
        raise ContextError(f"{what} cannot be read: {damage}") from None


def _copy(value: Any) -> Any:
    """`value` with its containers copied; strings and numbers, which cannot change, are shared."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


def decode_message(data: bytes) -> dict[str, Any]:
    """One stored message."""
    message: dict[str, Any] = load_json(data)
    return message
