"""Several models, tried in order (checklist A04). How, is said in `complete`."""

from dataclasses import dataclass

from factorial.errors import ConfigError
from factorial.models.model import Model

__all__ = ["FallbackModels", "fallback_models"]


@dataclass(frozen=True)
class FallbackModels:
    """Accepted wherever a `Model` is. Made by `fallback_models`."""

    models: tuple[Model, ...]

    @property
    def name(self) -> str:
        """All names, in order."""
        return " | ".join(model.name for model in self.models)

    @property
    def context_window(self) -> int:
        """The smallest: a request that fits it fits every one of the models."""
        return min(model.context_window for model in self.models)


def fallback_models(*models: Model | FallbackModels) -> FallbackModels:
    """When one of `models` fails, the next is tried, in this order."""
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
