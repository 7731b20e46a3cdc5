"""What has changed in a context since it was stored.

A context is stored as its messages, one by one, and its other fields, one by one (`codec.py`). So a turn writes its new
messages and its changed fields, and nothing that grows with the conversation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from factorial.agent.lifecycle.codec import (
    ABOUT,
    decode_context,
    encode_fields,
    encode_messages,
    fits,
    loose_fields,
    with_loose,
)
from factorial.context import AgentContext

__all__ = ["Changes", "ContextSnapshot"]


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

    @property
    def _loose(self) -> list[str]:
        """The stored fields that do not fit their types."""
        return loose_fields(self._fields) if ABOUT in self._fields else []

    def changed_fields(self, context: AgentContext) -> dict[str, bytes]:
        """The fields, messages aside, that differ from the stored ones."""
        stored, present = self._fields, encode_fields(context)
        changed = {name: value for name, value in present.items() if stored.get(name) != value}
        loose = {name for name in changed if name and not fits(type(context), name, changed[name])}
        if loose or self._loose:
            loose |= {name for name in self._loose if name in present and name not in changed}
            about = with_loose(present, loose)
            if about != stored.get(ABOUT):
                changed[ABOUT] = about
        return changed

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


def _copy(value: Any) -> Any:
    """`value` with its containers copied; strings and numbers, which cannot change, are shared."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value
