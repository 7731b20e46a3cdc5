"""The model of the examples: the default model if there is a key for it, else a script."""

import os

from factorial import Model
from factorial.testing import ScriptedModel

__all__ = ["HAS_KEY", "WHO_ANSWERS", "model_or"]

HAS_KEY = bool(os.environ.get("OPENAI_API_KEY"))
"""With OPENAI_BASE_URL, the key may be for any server that speaks OpenAI's protocol."""

WHO_ANSWERS = (
    "Factorial's default model answers."
    if HAS_KEY
    else "OPENAI_API_KEY is not set: a script answers. It is not a language model, and understands nothing."
)


def model_or(script: ScriptedModel) -> Model | None:
    """None, which selects an agent's default model, if there is a key; otherwise `script`."""
    return None if HAS_KEY else script
