"""The catalogue: providers and models that can be used by name.

Models that are not listed are made with `Model(name, provider, provider_model_id, context_window)`.
"""

import difflib

from factorial.errors import UnknownModelError
from factorial.models.model import Model
from factorial.models.provider import Provider

__all__ = [
    "DEFAULT_MODEL", "MODELS", "anthropic", "claude_35_haiku", "claude_35_sonnet", "claude_37_sonnet",
    "claude_4_opus", "claude_4_sonnet", "find_model", "google", "gpt_41", "gpt_41_mini", "gpt_41_nano", "gpt_5",
    "gpt_54", "gpt_54_mini", "gpt_5_mini", "gpt_5_nano", "grok_3", "grok_3_mini", "o3", "o4_mini", "openai", "xai",
]  # fmt: skip

openai: Provider = Provider("openai", "https://api.openai.com/v1", "OPENAI_API_KEY", "OPENAI_BASE_URL")
# Anthropic and Google have endpoints that are compatible with chat completions.
anthropic: Provider = Provider("anthropic", "https://api.anthropic.com/v1", "ANTHROPIC_API_KEY")
google: Provider = Provider("google", "https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY")
xai: Provider = Provider("xai", "https://api.x.ai/v1", "XAI_API_KEY")
Provider.OPENAI, Provider.ANTHROPIC, Provider.XAI = openai, anthropic, xai

gpt_54: Model = Model("gpt_54", openai, "gpt-5.4", 1_050_000)
gpt_54_mini: Model = Model("gpt_54_mini", openai, "gpt-5.4-mini", 400_000)
gpt_5: Model = Model("gpt_5", openai, "gpt-5", 400_000)
gpt_5_mini: Model = Model("gpt_5_mini", openai, "gpt-5-mini", 400_000)
gpt_5_nano: Model = Model("gpt_5_nano", openai, "gpt-5-nano", 400_000)
gpt_41: Model = Model("gpt_41", openai, "gpt-4.1", 1_047_576)
gpt_41_mini: Model = Model("gpt_41_mini", openai, "gpt-4.1-mini", 1_047_576)
gpt_41_nano: Model = Model("gpt_41_nano", openai, "gpt-4.1-nano", 1_047_576)
o3: Model = Model("o3", openai, "o3", 200_000)
o4_mini: Model = Model("o4_mini", openai, "o4-mini", 200_000)
claude_4_opus: Model = Model("claude_4_opus", anthropic, "claude-opus-4-20250514", 200_000)
claude_4_sonnet: Model = Model("claude_4_sonnet", anthropic, "claude-sonnet-4-20250514", 200_000)
claude_37_sonnet: Model = Model("claude_37_sonnet", anthropic, "claude-3-7-sonnet-20250219", 200_000)
claude_35_sonnet: Model = Model("claude_35_sonnet", anthropic, "claude-3-5-sonnet-20241022", 200_000)
claude_35_haiku: Model = Model("claude_35_haiku", anthropic, "claude-3-5-haiku-20241022", 200_000)
grok_3: Model = Model("grok_3", xai, "grok-3", 131_072)
grok_3_mini: Model = Model("grok_3_mini", xai, "grok-3-mini", 131_072)

MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        gpt_54, gpt_54_mini, gpt_5, gpt_5_mini, gpt_5_nano, gpt_41, gpt_41_mini, gpt_41_nano,
        o3, o4_mini, claude_4_opus, claude_4_sonnet, claude_37_sonnet, claude_35_sonnet, claude_35_haiku,
        grok_3, grok_3_mini,
    )
}  # fmt: skip
"""All models of the catalogue by name."""

DEFAULT_MODEL: Model = gpt_54_mini
"""The model of agents that name none. The GPT-4.1 and GPT-5 families are not suitable, because OpenAI retires them in
January 2027 and December 2026, nor is GPT-5.6, which accepts tools on this endpoint only without reasoning."""


def find_model(name: str) -> Model:
    """The model with this name, in the catalogue or at its provider. Otherwise raises `UnknownModelError`."""
    for model in MODELS.values():
        if name in (model.name, model.provider_model_id):
            return model
    known = [key for model in MODELS.values() for key in (model.name, model.provider_model_id)]
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are: {', '.join(MODELS)}."
    raise UnknownModelError(
        f"there is no model {name!r} in the catalogue; {hint} For any other, define it: "
        f"Model(name={name!r}, provider=Provider(name=..., base_url=..., api_key_env=...), provider_model_id=...)"
    )
