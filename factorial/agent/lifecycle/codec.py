"""A context as JSON: field by field, and message by message.

What JSON alone does not tell is stored next to the fields, under the name `""`:

    secrets    fields that hold a `SecretStr` or another secret of pydantic. They are stored with their values, each as
               `{"$secret": value}`, so that they can be masked wherever they are shown
    loose      fields that the agent's own code has set to something that their type does not allow. They come back as
               they were set; any other field that does not fit its type is a mismatch between stored data and code
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from types import GenericAlias, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import (
    ConfigDict,
    PydanticUserError,
    Secret,
    SecretBytes,
    SecretStr,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticSerializationError, to_json

from factorial._core.json import dump_json, load_json
from factorial._core.sizes import MAX_VALUE_BYTES, MOST_BYTES, too_large
from factorial._core.text import error_text
from factorial.context import AgentContext, ContextType
from factorial.errors import ContextError, FatalAgentError, RetryableError, UnreadableContextError

__all__ = [
    "ABOUT", "complaints_about", "decode_context", "decode_message", "encode_fields",
    "encode_messages", "fits", "loose_fields", "readable", "shown_fields", "with_loose",
]  # fmt: skip

ABOUT = ""
"""The name under which `secrets` and `loose` are stored. No field has it."""
_SECRET = "$secret"
_MASK = b"**********"
"""How pydantic shows a secret."""
_DEEPEST = 100
_IN_EVERY_RELEASE = {(name,) for name in AgentContext.model_fields}
_CONFIG = ConfigDict(arbitrary_types_allowed=True)


# Encoding.


def encode_fields(context: AgentContext) -> dict[str, bytes]:
    """Each field of `context` but its messages, as JSON. Raises `ContextError` that names the field."""
    encoded = {name: _encode(context, name, value) for name, value in _plain_fields(context).items()}
    secrets = [name for name, value in encoded.items() if _MASK in value and name != "output"]
    if secrets:
        encoded |= {name: _encode(context, name, _revealed(context, name)) for name in secrets}
        secrets = [name for name in secrets if _marks_a_secret(encoded[name])]
    if secrets:
        encoded[ABOUT] = dump_json({"secrets": secrets})
    return encoded


def with_loose(fields: Mapping[str, bytes], loose: Collection[str]) -> bytes:
    """What is stored next to `fields` if those in `loose` do not fit their types."""
    about = load_json(fields.get(ABOUT, b"{}")) | {"loose": sorted(loose)}
    return dump_json({key: names for key, names in about.items() if names})


def loose_fields(fields: Mapping[str, bytes]) -> list[str]:
    """The fields that were stored although they do not fit their types."""
    return _about(fields)["loose"]


def fits(context_class: type[AgentContext], name: str, value: bytes) -> bool:
    """Whether a stored field can be read by its type."""
    try:
        adapter = _adapter(context_class, name)
        if adapter is not None:
            adapter.validate_json(value)
    except ValidationError:
        return False
    return True


def _plain_fields(context: AgentContext) -> dict[str, Any]:
    try:
        plain = context.model_dump(mode="json", round_trip=True, exclude={"messages"})
        if computed := type(context).model_computed_fields:  # not read back: for those who look at the task
            plain |= context.model_dump(mode="json", include=set(computed))
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
    if ABOUT in plain:
        raise ContextError(f"{type(context).__name__} has a field without a name: give it one")
    return plain


def _revealed(context: AgentContext, name: str) -> Any:
    """The field with its secrets in the open, each marked as one."""
    return _with_secrets(context.model_dump(mode="python", round_trip=True, include={name})[name], _DEEPEST)


def _with_secrets(value: Any, depth: int) -> Any:
    if isinstance(value, SecretStr | SecretBytes | Secret):
        return {_SECRET: value.get_secret_value()}
    if not depth:
        return value
    if isinstance(value, dict):
        return {key: _with_secrets(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_with_secrets(item, depth - 1) for item in value]
    return value


def _marks_a_secret(encoded: bytes) -> bool:
    return b'{"' + _SECRET.encode() + b'":' in encoded


def _encode(context: AgentContext, name: str, value: Any) -> bytes:
    try:
        # JSON has no numbers for infinities and NaN; pydantic writes and reads them by these names all the same.
        encoded = to_json(value, inf_nan_mode="constants")
    except PydanticSerializationError as unfit:
        raise ContextError(f"{type(context).__name__}.{name} cannot be stored as JSON: {unfit}") from None
    if name == "query" and len(encoded) > MOST_BYTES:
        raise ContextError(too_large(f"{type(context).__name__}.query as JSON", len(encoded)))
    if len(encoded) > MAX_VALUE_BYTES:
        raise ContextError(too_large(f"{type(context).__name__}.{name} as JSON", len(encoded), MAX_VALUE_BYTES))
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
            raise ContextError(too_large(f"messages[{position}]", len(encoded[-1]), MAX_VALUE_BYTES))
    return encoded


# Decoding.


def decode_context(
    context_class: type[ContextType], fields: Mapping[str, bytes], conversation: Sequence[bytes]
) -> ContextType:
    """The context that was stored in these parts.

    What was accepted once is not refused for what it is now: if a check of the class fails (a file is gone, a date has
    passed, a tool has set something else), the fields are read by their types alone. Raises `UnreadableContextError`
    that names the field if the stored data does not fit the types of `context_class`, `ContextError` if the data is
    damaged, and `RetryableError` if a validator raises what does not say that something is invalid.
    """
    about = _about(fields)
    stored = {name: _opened(value) if name in about["secrets"] else value for name, value in fields.items() if name}
    members = [
        dump_json(name) + b":" + value
        for name, value in stored.items()
        if name not in context_class.model_computed_fields
    ]
    members.append(b'"messages":[' + b",".join(conversation) + b"]")
    try:
        context = context_class.model_validate_json(b"{" + b",".join(members) + b"}", by_name=True)
    except ValidationError as unfit:
        if _is_damage(unfit):
            raise ContextError(
                f"the stored context does not fit {context_class.__name__}: {complaints_about(unfit)}"
            ) from None
        return _read_by_types(context_class, stored, conversation, about["loose"])
    except FatalAgentError:
        raise
    except BaseException as error:  # the boundary to the user's code: a validator may raise anything
        raise RetryableError(f"a validator of {context_class.__name__} raised {error_text(error)}") from error
    if _has_validators(context_class):
        _undo_validators(context, stored)
    return context


def _about(fields: Mapping[str, bytes]) -> dict[str, list[str]]:
    with readable("what is stored about the context's fields"):
        about = load_json(fields.get(ABOUT, b"{}"))
        return {"secrets": list(about.get("secrets", ())), "loose": list(about.get("loose", ()))}


def _opened(value: bytes) -> bytes:
    """A stored field with its secrets as plain values, for their types to read."""
    return to_json(_without_marks(load_json(value), lambda secret: secret), inf_nan_mode="constants")


def _without_marks(value: Any, replace: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_SECRET}:
            return replace(value[_SECRET])
        return {key: _without_marks(item, replace) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_marks(item, replace) for item in value]
    return value


def shown_fields(fields: Mapping[str, bytes]) -> dict[str, Any]:
    """Stored fields as plain data for people: secrets are masked."""
    secrets = _about(fields)["secrets"]
    shown = {name: load_json(value) for name, value in fields.items() if name}
    masked = {name: _without_marks(shown[name], lambda _: _MASK.decode()) for name in secrets if name in shown}
    return shown | masked


def _read_by_types(
    context_class: type[ContextType], stored: Mapping[str, bytes], conversation: Sequence[bytes], loose: Collection[str]
) -> ContextType:
    values: dict[str, Any] = {"messages": [load_json(message) for message in conversation]}
    complaints: dict[str, str] = {}
    for name, value in stored.items():
        if name in context_class.model_computed_fields:
            continue
        try:
            adapter = _adapter(context_class, name)
            values[name] = load_json(value) if adapter is None else adapter.validate_json(value)
        except ValidationError as unfit:
            if name in loose:
                values[name] = load_json(value)
            else:
                complaints[name] = f"{name}: {complaints_about(unfit)}"
    for name, field in context_class.model_fields.items():
        if name not in values and field.is_required():
            complaints.setdefault(name, f"{name}: Field required")
    if complaints:
        listed = "; ".join(complaints.values())
        raise UnreadableContextError(f"the stored context does not fit {context_class.__name__}: {listed}")
    return context_class.model_construct(**values)


def _is_damage(unfit: ValidationError) -> bool:
    """Whether no release could read it: it is not JSON, or a field that is the same in every release does not fit."""
    errors = unfit.errors(include_input=False, include_url=False)
    return any(error["type"] == "json_invalid" or error["loc"][:1] in _IN_EVERY_RELEASE for error in errors)


def _undo_validators(context: AgentContext, stored: Mapping[str, bytes]) -> None:
    """A validator that changes what it has changed before (it counts, or appends) leaves the field as it was stored."""
    present = encode_fields(context)
    for name, value in stored.items():
        adapter = _adapter(type(context), name) if present.get(name) not in (None, value) else None
        if adapter is not None and fits(type(context), name, value):
            context.__dict__[name] = adapter.validate_json(value)


def _has_validators(context_class: type[AgentContext]) -> bool:
    decorators = context_class.__pydantic_decorators__
    return bool(decorators.field_validators or decorators.model_validators or decorators.validators)


@lru_cache(maxsize=10_000)
def _adapter(context_class: type[AgentContext], name: str) -> TypeAdapter[Any] | None:
    """Reads a field by its type alone, without the checks of the class; None if nothing is known of its type."""
    field = context_class.model_fields.get(name)
    if field is None or field.annotation is None:
        return None
    for annotation in (_without_checks(field.annotation), field.annotation):
        try:
            return TypeAdapter(annotation, config=_CONFIG)
        except (PydanticUserError, TypeError):
            pass
    return None


def _without_checks(annotation: Any) -> Any:
    """The annotation without what `Annotated` adds to its types, but for discriminators, which tell types apart."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        kept = [one for one in arguments[1:] if getattr(one, "discriminator", None)]
        return Annotated[(_without_checks(arguments[0]), *kept)] if kept else _without_checks(arguments[0])
    if get_origin(annotation) in (Union, UnionType):
        return Union[tuple(_without_checks(one) for one in arguments)]  # noqa: UP007  # made of what is known at run time
    if isinstance(annotation, GenericAlias):
        return GenericAlias(get_origin(annotation), tuple(_without_checks(one) for one in arguments))
    return annotation


def complaints_about(unfit: ValidationError) -> str:
    """What pydantic says is wrong, field by field."""
    errors = unfit.errors(include_input=False, include_url=False)
    return "; ".join(": ".join(filter(None, (".".join(map(str, error["loc"])), error["msg"]))) for error in errors)


def decode_message(data: bytes) -> dict[str, Any]:
    """One stored message."""
    message: dict[str, Any] = load_json(data)
    return message


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Within the block, stored data is read. Raises `ContextError` that names `what` if it is damaged."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as damage:
        raise ContextError(f"{what} cannot be read: {damage}") from None
