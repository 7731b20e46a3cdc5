"""Models and `MultiClient` by the path that nfactorial 0.1.x had for them. New programs import `factorial`, or
`factorial.models` for what is not there."""

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
