"""The catalogue: providers and models that can be used by name.

Models that are not listed are made with `Model(name, provider, provider_model_id, context_window)`.
"""

import difflib

from factorial.errors import ConfigError, UnknownModelError
from factorial.models.model import Model
from factorial.models.provider import Provider

__all__ = [
    "DEFAULT_MODEL", "MODELS", "ai_gateway", "anthropic", "claude_35_haiku", "claude_35_sonnet", "claude_37_sonnet",
    "claude_45_haiku", "claude_45_opus", "claude_45_sonnet", "claude_4_opus", "claude_4_sonnet", "find_model",
    "fireworks", "fireworks_kimi_k2", "fireworks_qwen_3_235b", "fireworks_qwen_3_coder_480b", "google", "gpt_41",
    "gpt_41_mini", "gpt_41_nano", "gpt_5", "gpt_52", "gpt_54", "gpt_54_mini", "gpt_5_mini", "gpt_5_nano", "grok_3",
    "grok_3_mini", "grok_4", "o3", "o4_mini", "openai", "vercel", "xai",
]  # fmt: skip

openai: Provider = Provider("openai", "https://api.openai.com/v1", "OPENAI_API_KEY", "OPENAI_BASE_URL")
# Anthropic and Google have endpoints that are compatible with chat completions.
anthropic: Provider = Provider("anthropic", "https://api.anthropic.com/v1", "ANTHROPIC_API_KEY")
google: Provider = Provider("google", "https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY")
xai: Provider = Provider("xai", "https://api.x.ai/v1", "XAI_API_KEY")
fireworks: Provider = Provider("fireworks", "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY")
vercel: Provider = Provider("ai_gateway", "https://ai-gateway.vercel.sh/v1", "AI_GATEWAY_API_KEY")
Provider.OPENAI, Provider.ANTHROPIC, Provider.XAI = openai, anthropic, xai
Provider.FIREWORKS, Provider.AI_GATEWAY = fireworks, vercel

gpt_54: Model = Model("gpt-5.4", openai, "gpt-5.4", 1_050_000)
gpt_54_mini: Model = Model("gpt-5.4-mini", openai, "gpt-5.4-mini", 400_000)
gpt_52: Model = Model("gpt-5.2", openai, "gpt-5.2", 400_000)
gpt_5: Model = Model("gpt-5", openai, "gpt-5", 400_000)
gpt_5_mini: Model = Model("gpt-5-mini", openai, "gpt-5-mini", 400_000)
gpt_5_nano: Model = Model("gpt-5-nano", openai, "gpt-5-nano", 400_000)
gpt_41: Model = Model("gpt-4.1", openai, "gpt-4.1", 1_047_576)
gpt_41_mini: Model = Model("gpt-4.1-mini", openai, "gpt-4.1-mini", 1_047_576)
gpt_41_nano: Model = Model("gpt-4.1-nano", openai, "gpt-4.1-nano", 1_047_576)
o3: Model = Model("o3", openai, "o3", 200_000)
o4_mini: Model = Model("o4-mini", openai, "o4-mini", 200_000)
claude_45_opus: Model = Model("claude-4.5-opus", anthropic, "claude-opus-4-5-20251101", 200_000)
claude_45_sonnet: Model = Model("claude-4.5-sonnet", anthropic, "claude-sonnet-4-5-20250929", 200_000)
claude_45_haiku: Model = Model("claude-4.5-haiku", anthropic, "claude-haiku-4-5-20251001", 200_000)
claude_4_opus: Model = Model("claude-4-opus", anthropic, "claude-opus-4-20250514", 200_000)
claude_4_sonnet: Model = Model("claude-4-sonnet", anthropic, "claude-sonnet-4-20250514", 200_000)
claude_37_sonnet: Model = Model("claude-3.7-sonnet", anthropic, "claude-3-7-sonnet-20250219", 200_000)
claude_35_sonnet: Model = Model("claude-3.5-sonnet", anthropic, "claude-3-5-sonnet-20241022", 200_000)
claude_35_haiku: Model = Model("claude-3.5-haiku", anthropic, "claude-3-5-haiku-20241022", 200_000)
grok_4: Model = Model("grok-4", xai, "grok-4", 256_000)
grok_3: Model = Model("grok-3", xai, "grok-3", 131_072)
grok_3_mini: Model = Model("grok-3-mini", xai, "grok-3-mini", 131_072)
fireworks_kimi_k2: Model = Model("kimi-k2-instruct", fireworks, "accounts/fireworks/models/kimi-k2-instruct", 128_000)
fireworks_qwen_3_235b: Model = Model("qwen-3-235b", fireworks, "accounts/fireworks/models/qwen3-235b-a22b", 128_000)
fireworks_qwen_3_coder_480b: Model = Model(
    "qwen-3-coder-480b", fireworks, "accounts/fireworks/models/qwen3-coder-480b-a35b-instruct", 256_000
)

_BY_IDENTIFIER = {identifier: found for identifier, found in globals().items() if isinstance(found, Model)}

MODELS: dict[str, Model] = {model.name: model for model in _BY_IDENTIFIER.values()}
"""All models of the catalogue by name."""

DEFAULT_MODEL: Model = gpt_54_mini
"""The model of agents that name none. The GPT-4.1 and GPT-5 families are not suitable, because OpenAI retires them in
January 2027 and December 2026, nor is GPT-5.6, which accepts tools on this endpoint only without reasoning."""


def find_model(name: str) -> Model:
    """The model with this name, in the catalogue or at its provider, or the one that is imported by this name.

    Otherwise raises `UnknownModelError`.
    """
    if (found := MODELS.get(name) or _BY_IDENTIFIER.get(name)) is not None:
        return found
    for model in MODELS.values():
        if name == model.provider_model_id:
            return model
    known = dict.fromkeys([*_BY_IDENTIFIER, *MODELS, *(model.provider_model_id for model in MODELS.values())])
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are: {', '.join(MODELS)}."
    raise UnknownModelError(
        f"there is no model {name!r} in the catalogue; {hint} For any other, define it: "
        f"Model(name={name!r}, provider=Provider(name=..., base_url=..., api_key_env=...), provider_model_id=...)"
    )


def ai_gateway(model: Model) -> Model:
    """`model`, asked through Vercel's AI gateway, which knows it as `<provider>/<its id at the provider>`.

    The gateway's key is `AI_GATEWAY_API_KEY`. Raises `ConfigError` for anything that is not a `Model`.
    """
    if not isinstance(model, Model):
        raise ConfigError(f"ai_gateway: {model!r} is not a Model: import one from factorial, or use find_model")
    if model.provider.name == vercel.name:
        return model
    return Model(
        name=f"ai-gateway/{model.name}",
        provider=vercel,
        provider_model_id=f"{model.provider.name}/{model.provider_model_id}",
        context_window=model.context_window,
    )
