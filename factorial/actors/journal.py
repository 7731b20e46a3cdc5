"""`Journal`: the recorded steps of the present turn, and what they changed in the context. It sends nothing.

A step has up to three entries in the journal, and more if guards add some:

    <key>             its result
    message:<key>     the part of it that goes into the conversation
    context:<key>     the context fields that the turn had changed by then
"""

from collections.abc import Mapping, Sequence

from pydantic_core import to_json

from factorial._core.json import load_json
from factorial.agent.lifecycle.host import Recorded
from factorial.agent.lifecycle.snapshot import ContextSnapshot
from factorial.context import AgentContext
from factorial.errors import ContextError

__all__ = ["Journal"]

# Prefixes of a step's key, which contains whatever id the provider gave the call.
_MESSAGE = "message:"
_CONTEXT = "context:"
_EXPECTED = "expected:"
_UNNAMED = b"1"
"""What releases up to 0.3.0 stored instead of the name of the step."""


class Journal:
    """The steps that earlier attempts at the turn recorded, and the names of those that this one records."""

    def __init__(self, entries: Mapping[str, bytes], snapshot: ContextSnapshot) -> None:
        self._entries = entries
        self._snapshot = snapshot
        self._messages: dict[bytes, str] = {}
        """The entries that hold these messages."""
        self._expected = {
            key.removeprefix(_EXPECTED): step for key, step in entries.items() if key.startswith(_EXPECTED)
        }
        """For each result that may be delivered from outside, the step that it is the result of."""
        self._changes = sum(_CONTEXT + key in entries for key in entries)
        """How many steps have recorded changes: the order of the next one."""
        self._restored = 0
        """Up to which of them the context has the changes."""

    def recall(self, key: str, context: AgentContext | None, *, with_siblings: bool) -> Recorded | None:
        """The step, if an earlier attempt at this turn recorded it. What it changed is restored in `context`."""
        result = self._entries.get(key)
        if result is None:
            return None
        if context is not None:
            self._restore(list(self._entries) if with_siblings else [key], context)
        return Recorded(result, self._entries.get(_MESSAGE + key, b""))

    def _restore(self, steps: Sequence[str], context: AgentContext) -> None:
        """Each step has recorded all changes up to it, so the latest one has them all."""
        try:
            changes = [load_json(change) for step in steps if (change := self._entries.get(_CONTEXT + step))]
        except ValueError as damage:
            raise ContextError(f"what the turn's finished steps have changed cannot be read: {damage}") from None
        latest = max(changes, key=lambda change: int(change["order"]), default=None)
        if latest is not None and latest["order"] > self._restored:
            self._restored = latest["order"]
            changed = {name: to_json(value, inf_nan_mode="constants") for name, value in latest["fields"].items()}
            self._snapshot.restore_fields(context, changed)

    def expect(self, key: str, step: str) -> dict[str, bytes] | None:
        """The entry that says: the result `key` may be delivered from outside, and is that of `step`.

        None if another step of the turn expects a result of this name.
        """
        known = self._expected.setdefault(key, step.encode())
        return {_EXPECTED + key: known} if known in (step.encode(), _UNNAMED) else None

    def entries_of(self, key: str, step: Recorded, context: AgentContext | None) -> dict[str, bytes]:
        """What is to be written for a finished step."""
        entries = {key: step.result}
        if step.message:
            entries[_MESSAGE + key] = step.message
            self._messages[step.message] = _MESSAGE + key
        if context is not None:
            changed = self._snapshot.changed_fields(context)
            if changed or self._changes:  # an earlier step's change may have been undone
                self._changes += 1
                entries[_CONTEXT + key] = _dump_changes(self._changes, changed)
        return entries | {f"{name}:{key}": value for name, value in step.entries.items()}

    def close(self) -> None:
        """Nothing more is recalled or recorded: let go of the context."""
        self._entries = {}
        del self._snapshot

    def by_reference(self, message: bytes, unsent: Mapping[str, bytes]) -> bytes:
        """The message as a commit names it: by the journal entry that holds it, because large results are sent once."""
        entry = self._messages.get(message)
        return b"m" + message if entry is None or entry in unsent else b"j" + entry.encode()

    def in_full(self, messages: Sequence[bytes]) -> list[bytes]:
        """The same messages without such names: the server has lost the entries."""
        known = {b"j" + entry.encode(): b"m" + message for message, entry in self._messages.items()}
        return [known[message] if message.startswith(b"j") else message for message in messages]


def _dump_changes(order: int, changed: Mapping[str, bytes]) -> bytes:
    members = b",".join(to_json(name) + b":" + value for name, value in changed.items())
    return b'{"order":%d,"fields":{%s}}' % (order, members)
