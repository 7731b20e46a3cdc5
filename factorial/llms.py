"""Models and `MultiClient` at their path of nfactorial 0.1.x. New programs use `factorial` and `factorial.models`."""

from factorial.models import (
    Model,
    MultiClient,
    Provider,
    claude_4_opus,
    claude_4_sonnet,
    claude_35_haiku,
    claude_35_sonnet,
    claude_37_sonnet,
    gpt_41,
    gpt_41_mini,
    gpt_41_nano,
    grok_3,
    grok_3_mini,
    o3,
    o4_mini,
)

__all__ = [
    "Model", "MultiClient", "Provider", "claude_35_haiku", "claude_35_sonnet", "claude_37_sonnet", "claude_4_opus",
    "claude_4_sonnet", "gpt_41", "gpt_41_mini", "gpt_41_nano", "grok_3", "grok_3_mini", "o3", "o4_mini",
]  # fmt: skip
