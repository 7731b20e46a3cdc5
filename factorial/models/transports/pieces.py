"""Puts together what a stream cuts into pieces: texts, lists of parts, tool calls. Pure.

Servers cut tool calls in many ways: under an index or without one, several calls under index 0 with their own ids, a
call whose id changes from piece to piece, calls whose pieces alternate, arguments as an object. `CallPieces` finds the
call that a piece belongs to.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from factorial._core.json import is_json_object
from factorial.models.view import chosen_id

__all__ = ["CallPieces", "merged"]

_TEXTS = ("text", "summary", "thinking")
"""The members of a part that come in pieces. Any other is sent whole."""


def merged(known: Any, piece: Any) -> Any:
    """What has arrived of one member of a message, with one more piece of it."""
    if known is None or known == "":
        return piece
    if isinstance(known, str) and isinstance(piece, str):
        return known + piece
    if isinstance(known, list) or isinstance(piece, list):
        return _merged_parts(_parts(known), _parts(piece))
    if isinstance(known, dict) and isinstance(piece, dict):
        return known | {name: merged(known.get(name), value) for name, value in piece.items() if value is not None}
    return piece


def _parts(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return [{"type": "text", "text": value}] if value else []


def _merged_parts(known: list[Any], pieces: list[Any]) -> list[Any]:
    parts = list(known)
    for piece in pieces:
        position = _continued(parts, piece)
        if position is None:
            parts.append(piece)
        else:
            parts[position] = parts[position] | {
                name: merged(parts[position].get(name), value) if name in _TEXTS else value
                for name, value in piece.items()
                if value not in (None, "")
            }
    return parts


def _continued(parts: Sequence[Any], piece: Any) -> int | None:
    """Which part `piece` continues; None if it begins one. A signature ends a part."""
    if not isinstance(piece, dict) or not any(name in piece for name in (*_TEXTS, "signature")):
        return None
    for position in range(len(parts) - 1, -1, -1):
        part = parts[position]
        if isinstance(part, dict) and part.get("type") == piece.get("type") and part.get("index") == piece.get("index"):
            return None if part.get("signature") else position
        if piece.get("index") is None:
            return None
    return None


@dataclass(slots=True)
class _Call:
    """One call. `ids` are those that its pieces had."""

    id: str
    index: int | None
    ids: list[str] = field(default_factory=list)
    name: str = ""
    texts: list[str] = field(default_factory=list)
    data: Any = None
    """Arguments that did not come as text."""
    further: dict[str, Any] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether its arguments are complete."""
        return self.data is not None or is_json_object("".join(self.texts))


class CallPieces:
    """The tool calls of one answer."""

    def __init__(self, taken: Collection[str] = ()) -> None:
        self._taken = set(taken)
        self._calls: list[_Call] = []

    @property
    def ids(self) -> list[str]:
        """The ids that the calls have from their first pieces on."""
        return [call.id for call in self._calls]

    def add(self, pieces: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Add pieces of calls, and return them under the ids and numbers of their calls."""
        if isinstance(pieces, Mapping):
            pieces = [pieces]
        return [self._add(piece, position, len(pieces)) for position, piece in enumerate(pieces)]

    def whole(self) -> list[dict[str, Any]]:
        """The calls, as a server that does not stream would have sent them."""
        return [
            {
                **({"id": call.ids[0]} if call.ids else {}),
                "type": "function",
                **call.further,
                "function": {
                    "name": call.name,
                    "arguments": "".join(call.texts) if call.data is None else call.data,
                },
            }
            for call in self._calls
        ]

    def _add(self, piece: Mapping[str, Any], position: int, count: int) -> Mapping[str, Any]:
        function = piece.get("function") or {}
        call = self._call_of(piece, function, position if count > 1 else None)
        is_first = call is None
        if call is None:
            index = piece.get("index")
            call = _Call(chosen_id(piece.get("id"), self._taken), position if index is None else index)
            self._taken.add(call.id)
            self._calls.append(call)
        if piece.get("id") and piece["id"] not in call.ids:
            call.ids.append(piece["id"])
        self._add_function(call, function)
        for name, value in piece.items():
            if name not in ("index", "id", "function") and value is not None:
                call.further[name] = value if name == "type" else merged(call.further.get(name), value)
        shown = {**piece, "index": self._calls.index(call)}
        return shown | {"id": call.id} if is_first or piece.get("id") else shown

    def _add_function(self, call: _Call, function: Mapping[str, Any]) -> None:
        name, arguments = function.get("name"), function.get("arguments")
        if name and name != call.name and not call.texts:
            call.name += name
        if isinstance(arguments, str):
            if arguments:
                call.texts.append(arguments)
        elif arguments is not None:
            call.data = merged(call.data, arguments)

    def _call_of(self, piece: Mapping[str, Any], function: Mapping[str, Any], position: int | None) -> _Call | None:
        """The call that `piece` continues; None if it begins one."""
        index, sent_id, name = piece.get("index"), piece.get("id"), function.get("name")
        open_calls = self._calls if index is None else [call for call in self._calls if call.index == index]
        if index is None and not sent_id and position is not None:
            open_calls = [call for call in self._calls if call.index == position]
        if not open_calls:
            return None
        by_id = [call for call in open_calls if sent_id in call.ids] if sent_id else []
        call = (by_id or open_calls)[-1]
        if not name:
            return call
        if by_id or not sent_id:  # the name once more, or the next call
            begins = call.is_whole and bool(function.get("arguments"))
        else:  # an id that is new: the id changes, or the next call
            begins = index is None or name != call.name or call.is_whole
        return None if begins else call
