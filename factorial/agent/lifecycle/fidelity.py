"""Whether a context comes back as it was: what does not is refused when a task is enqueued, and not found out later."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from factorial._core.text import safe_repr, with_article
from factorial.agent.lifecycle.codec import decode_context
from factorial.context import AgentContext
from factorial.errors import ContextError, RetryableError

__all__ = ["check_comes_back", "difference"]

_DEEPEST = 100


def check_comes_back(context: AgentContext, fields: Mapping[str, bytes]) -> None:
    """Raise `ContextError` that names the field if `context` would not be the same when it is read from `fields`."""
    if type(context) is AgentContext and not context.model_extra and context.output is None:
        return  # text and a number
    kind = type(context).__name__
    try:
        read = decode_context(type(context), fields, ())
    except (ContextError, RetryableError) as unfit:
        raise ContextError(
            f"{kind} cannot be read back from JSON: {unfit}. Give the field a type that pydantic can read from what it "
            "writes, or exclude the field"
        ) from None
    for name in [*type(context).model_fields, *(context.model_extra or {})]:
        field = type(context).model_fields.get(name)
        if name != "messages" and not (field and field.exclude):
            was, comes = getattr(context, name, None), getattr(read, name, None)
            if found := difference(was, comes):
                raise ContextError(
                    f"{kind}.{name} would not come back as it is: {found}. Annotate the field with the type that "
                    "it holds (for several types of model, a union with a discriminator), or exclude it"
                )


def difference(was: Any, comes: Any) -> str:
    """How what comes back differs from what was, in words; empty if it does not."""
    return _difference(was, comes, _DEEPEST)


def _difference(was: Any, comes: Any, depth: int) -> str:
    if _is_equal_text_or_number(was, comes):
        return ""
    if type(was) is not type(comes) and not (isinstance(was, dict) and isinstance(comes, dict)):
        return f"{type(was).__name__} would be {with_article(type(comes).__name__)}"
    if not depth:
        return ""
    if isinstance(was, BaseModel):
        pairs = [(getattr(was, name), getattr(comes, name, None)) for name in _stored_fields(was)]
    elif isinstance(was, dict):
        if was.keys() != comes.keys():
            return "its keys would differ"
        pairs = [(was[key], comes[key]) for key in was]
    elif isinstance(was, list | tuple):
        if len(was) != len(comes):
            return "its length would differ"
        pairs = list(zip(was, comes, strict=True))
    else:
        return "" if _is_same(was, comes) else f"{safe_repr(was, 60)} would be {safe_repr(comes, 60)}"
    return next((found for one, other in pairs if (found := _difference(one, other, depth - 1))), "")


def _is_equal_text_or_number(was: Any, comes: Any) -> bool:
    """Whether they are equal texts or numbers, if of two types: an int in a float's place, a StrEnum in a str's."""
    if isinstance(was, bool) or isinstance(comes, bool):
        return False
    return any(isinstance(was, kind) and isinstance(comes, kind) for kind in (str, int | float)) and bool(was == comes)


def _stored_fields(model: BaseModel) -> list[str]:
    fields = type(model).model_fields
    return [name for name in [*fields, *(model.model_extra or {})] if name not in fields or not fields[name].exclude]


def _is_same(was: Any, comes: Any) -> bool:
    if isinstance(was, float) and math.isnan(was):
        return math.isnan(comes)
    if "__eq__" not in {name for kind in type(was).__mro__[:-1] for name in vars(kind)}:
        return True  # compared by identity: what it is made of is known to pydantic alone
    return bool(was == comes)
