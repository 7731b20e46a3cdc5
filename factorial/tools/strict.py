"""A JSON schema as OpenAI takes it with `"strict": true`: each object is closed, and each of its properties required.

The provider then makes the model keep to the schema. A request with a schema that does not fit the rules is rejected as
a whole, so a schema that cannot be made to fit is sent without `strict`. Pure.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["strict_schema"]

_ANYWHERE = frozenset({"type", "description", "enum", "const", "anyOf", "$ref", "$defs"})
_BY_TYPE: Mapping[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "string": frozenset({"pattern", "format"}),
    "number": frozenset({"multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "integer": frozenset({"multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "boolean": frozenset(),
    "null": frozenset(),
}
"""The keywords that strict mode knows."""
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_DEFINITION = "#/$defs/"


class _Unfit(Exception):
    """The schema cannot be made to fit."""


def strict_schema(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """A copy of the schema of a tool's arguments, with each object closed; None if it cannot fit strict mode.

    It cannot if an object has optional properties or takes any others, or if it has keywords that strict mode does not
    know.
    """
    try:
        closed = _closed(schema, schema.get("$defs", {}), ())
    except _Unfit:
        return None
    return closed if closed.get("type") == "object" and "anyOf" not in closed else None


def _closed(schema: Any, definitions: Mapping[str, Any], within: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(schema, Mapping):
        raise _Unfit  # `true`: anything
    if "$ref" in schema and len(schema) > 1:
        return _closed(_inlined(schema, definitions, within), definitions, (*within, schema["$ref"]))
    kind = schema.get("type")
    if not isinstance(kind, str | None) or not schema.keys() <= _ANYWHERE | _BY_TYPE.get(str(kind), frozenset()):
        raise _Unfit
    if kind is None and not schema.keys() & {"enum", "const", "anyOf", "$ref"}:
        raise _Unfit
    if schema.get("format", "date") not in _FORMATS:
        raise _Unfit
    closed = dict(schema)
    for name in ("$defs", "properties"):
        if name in schema:
            closed[name] = {key: _closed(part, definitions, within) for key, part in schema[name].items()}
    if "anyOf" in schema:
        closed["anyOf"] = [_closed(choice, definitions, within) for choice in schema["anyOf"]]
    if kind == "array":
        closed["items"] = _closed(schema.get("items"), definitions, within)
    if kind == "object":
        properties = schema.get("properties", {})
        if schema.get("additionalProperties") not in (None, False) or set(schema.get("required", ())) != set(
            properties
        ):
            raise _Unfit
        if "properties" not in schema and "additionalProperties" not in schema:
            raise _Unfit  # it takes anything
        closed |= {"properties": closed.get("properties", {}), "required": list(properties)}
        closed["additionalProperties"] = False
    return closed


def _inlined(schema: Mapping[str, Any], definitions: Mapping[str, Any], within: tuple[str, ...]) -> dict[str, Any]:
    """The definition in the place of a reference that has a description of its own, which strict mode rejects."""
    reference = schema["$ref"]
    name = str(reference).removeprefix(_DEFINITION)
    if reference in within or name not in definitions or not isinstance(definitions[name], Mapping):
        raise _Unfit
    return {**definitions[name], **{key: value for key, value in schema.items() if key != "$ref"}}
