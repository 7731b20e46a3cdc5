"""Several models that are tried in order. `complete` says how."""

from dataclasses import dataclass

from factorial.errors import ConfigError
from factorial.models.model import Model
from factorial.models.provider import Provider

__all__ = ["AnyModel", "FallbackModels", "fallback_models"]


@dataclass(frozen=True)
class FallbackModels:
    """Models in the order in which they are tried, accepted wherever a `Model` is. Made by `fallback_models`."""

    models: tuple[Model, ...]

    @property
    def name(self) -> str:
        """All names, in order."""
        return " | ".join(model.name for model in self.models)

    @property
    def providers(self) -> frozenset[Provider]:
        """The providers of all of them."""
        return frozenset(model.provider for model in self.models)

    @property
    def context_window(self) -> int:
        """The smallest context window, in tokens: a request that fits it fits every model."""
        return min(model.context_window for model in self.models)


AnyModel = Model | FallbackModels
"""What a request can be sent to."""


def fallback_models(*models: AnyModel) -> FallbackModels:
    """Models of which the next is tried if one fails, in this order. Raises `ConfigError` for anything else."""
    flat: list[Model] = []
    for model in models:
        if isinstance(model, FallbackModels):
            flat.extend(model.models)
        elif isinstance(model, Model):
            flat.append(model)
        else:
            raise ConfigError(
                f"fallback_models: {model!r} is not a Model: import one from factorial, or use find_model"
            )
    if not flat:
        raise ConfigError("fallback_models() needs at least one model, for example fallback_models(gpt_5, gpt_41)")
    return FallbackModels(tuple(flat))
