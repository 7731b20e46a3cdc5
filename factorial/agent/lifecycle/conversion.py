"""A context of the base class for an agent with a class of its own."""

from pydantic import ValidationError

from factorial._core.text import with_article
from factorial.agent.lifecycle.codec import complaints_about
from factorial.context import AgentContext, ContextType
from factorial.errors import ContextError

__all__ = ["converted"]


def converted(payload: object, context_class: type[ContextType], agent: str) -> ContextType:
    """`payload`, as a context of the class of the agent named `agent`.

    A plain `AgentContext` is converted: it gives its fields, and the class its defaults. Raises `ContextError` that
    names the field if the class cannot be made of it, and for anything that is not a context of the class.
    """
    if isinstance(payload, context_class):
        return payload
    if type(payload) is not AgentContext:
        raise ContextError(
            f"agent {agent!r} works on {context_class.__name__}, "
            f"and the payload is {with_article(type(payload).__name__)}"
        )
    given = {
        name: value
        for name, field in AgentContext.model_fields.items()
        if not field.exclude
        and ((value := getattr(payload, name)) != field.default or name in payload.model_fields_set)
    }
    try:
        return context_class.model_validate(given | (payload.model_extra or {}), by_name=True)
    except ValidationError as unfit:
        raise ContextError(
            f"agent {agent!r} works on {context_class.__name__}, which cannot be made of an AgentContext: "
            f"{complaints_about(unfit)}. Give {with_article(context_class.__name__)}"
        ) from None
