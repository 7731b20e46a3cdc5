"""Models: the catalogue, the settings of a call, the call itself, and the transports that carry it.

`complete` is the entry point. `view` makes one form of what servers answer, `answer` reads it, and `conversation` makes
of the stored messages what a provider gets. `faults` has the table of errors: which are retried, which try the next
model, and which end the call.
"""

from factorial.models.answer import assistant_message, function_calls
from factorial.models.catalogue import (
    DEFAULT_MODEL,
    MODELS,
    ai_gateway,
    anthropic,
    claude_4_opus,
    claude_4_sonnet,
    claude_35_haiku,
    claude_35_sonnet,
    claude_37_sonnet,
    claude_45_haiku,
    claude_45_opus,
    claude_45_sonnet,
    find_model,
    fireworks,
    fireworks_kimi_k2,
    fireworks_qwen_3_235b,
    fireworks_qwen_3_coder_480b,
    google,
    gpt_5,
    gpt_5_mini,
    gpt_5_nano,
    gpt_41,
    gpt_41_mini,
    gpt_41_nano,
    gpt_52,
    gpt_54,
    gpt_54_mini,
    grok_3,
    grok_3_mini,
    grok_4,
    o3,
    o4_mini,
    openai,
    vercel,
    xai,
)
from factorial.models.complete import check_model, complete
from factorial.models.conversation import ready, sent_tokens, without_unclaimed
from factorial.models.fallback import AnyModel, FallbackModels, fallback_models
from factorial.models.model import Model, Transport
from factorial.models.multi_client import ModelClient, MultiClient, ask_client, is_own_client, refuse_http_client
from factorial.models.provider import Provider
from factorial.models.request import ModelRequest, OnChunk
from factorial.models.settings import ModelSettings, ResolvedModelSettings
from factorial.models.tokens import count_tokens
from factorial.models.transports import close_clients

__all__ = [
    "DEFAULT_MODEL", "MODELS", "AnyModel", "FallbackModels", "Model", "ModelClient", "ModelRequest",
    "ModelSettings", "MultiClient", "OnChunk", "Provider", "ResolvedModelSettings", "Transport", "ai_gateway",
    "anthropic", "ask_client", "assistant_message", "check_model", "claude_35_haiku", "claude_35_sonnet",
    "claude_37_sonnet",
    "claude_45_haiku", "claude_45_opus", "claude_45_sonnet", "claude_4_opus", "claude_4_sonnet", "close_clients",
    "complete", "count_tokens", "fallback_models", "find_model", "fireworks", "fireworks_kimi_k2",
    "fireworks_qwen_3_235b", "fireworks_qwen_3_coder_480b", "function_calls", "google", "gpt_41", "gpt_41_mini",
    "gpt_41_nano", "gpt_5", "gpt_52", "gpt_54", "gpt_54_mini", "gpt_5_mini", "gpt_5_nano", "grok_3", "grok_3_mini",
    "grok_4", "is_own_client", "o3", "o4_mini", "openai", "ready", "refuse_http_client", "sent_tokens",
    "vercel", "without_unclaimed", "xai",
]  # fmt: skip
