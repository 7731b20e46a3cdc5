"""Model settings, the catalogue and the check for keys. Nothing is fake, and no model is called."""

import dataclasses
import pickle
from typing import Any

import pytest

import factorial.models
from factorial.context import AgentContext
from factorial.errors import ConfigError, UnknownModelError
from factorial.models import (
    DEFAULT_MODEL,
    MODELS,
    Model,
    ModelSettings,
    Provider,
    check_model,
    claude_4_sonnet,
    fallback_models,
    find_model,
    gpt_5,
    gpt_41,
)
from factorial.testing import ScriptedModel


class Mood(AgentContext):
    mood: str = "calm"


def test_values_of_settings() -> None:
    settings = ModelSettings[AgentContext](
        temperature=0.8, max_completion_tokens=1000, tool_choice="auto", parallel_tool_calls=True
    ).resolve(AgentContext(query="q"))
    assert dataclasses.astuple(settings) == (0.8, 1000, "auto", True)


def test_functions_of_the_context() -> None:
    plan = {"type": "function", "function": {"name": "plan"}}
    settings: ModelSettings[AgentContext] = ModelSettings(
        temperature=lambda ctx: 0 if ctx.turn == 0 else 1, tool_choice=lambda ctx: plan if ctx.turn == 0 else "required"
    )
    first, second = (settings.resolve(AgentContext(query="q", turn=turn)) for turn in (0, 1))
    assert (first.temperature, first.tool_choice) == (0, plan)
    assert (second.temperature, second.tool_choice) == (1, "required")
    assert second.max_completion_tokens is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 3},
        {"temperature": "hot"},
        {"max_completion_tokens": 0},
        {"max_completion_tokens": True},
        {"tool_choice": "sometimes"},
        {"parallel_tool_calls": 1},
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name}="):
        ModelSettings(**wrong)
    late: ModelSettings[Mood] = ModelSettings(**{name: lambda ctx: wrong[name]})
    with pytest.raises(ConfigError, match=f"{name}="):
        late.resolve(Mood(query="q"))


def test_models_by_name() -> None:
    assert find_model("gpt_41") is gpt_41 and find_model("gpt-4.1") is gpt_41
    assert find_model("claude_45_sonnet") is find_model("claude-4.5-sonnet") is find_model("claude-sonnet-4-5-20250929")
    identifiers = {id(value): name for name, value in vars(factorial.models).items() if isinstance(value, Model)}
    for name, model in MODELS.items():
        assert model.name == name and find_model(identifiers[id(model)]) is model and model.context_window > 100_000
    assert DEFAULT_MODEL in MODELS.values()


def test_an_unknown_model_says_what_to_do() -> None:
    with pytest.raises(UnknownModelError, match=r"'gpt_51'.*did you mean 'gpt_5.*Model\(name='gpt_51', provider=Prov"):
        find_model("gpt_51")


def test_a_model_that_is_not_in_the_catalogue() -> None:
    local = Provider("local", "http://localhost:8080/v1", api_key_env=None)
    model = Model("qwen3-8b", local, context_window=32_768)
    assert model.provider_model_id == "qwen3-8b"
    assert pickle.loads(pickle.dumps(model)) == model
    check_model(model)
    with pytest.raises(ConfigError, match="provider='local' is not a Provider"):
        Model("qwen3-8b", "local")  # type: ignore[arg-type]


def test_the_transport_of_a_model_is_that_of_its_providers_protocol() -> None:
    assert gpt_41.transport() is claude_4_sonnet.transport()
    with pytest.raises(ConfigError, match=r"provider 'local': api='telnet': use one of chat"):
        Provider("local", "http://localhost:8080/v1", api_key_env=None, api="telnet")  # type: ignore[arg-type]


def test_an_invalid_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost:8080")
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL='localhost:8080' must start with http://"):
        assert gpt_41.provider.url


def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"'gpt-4\.1'.*OPENAI_API_KEY.*model=\.\.\..*testing\.ScriptedModel"):
        check_model(gpt_41)
    both = fallback_models(claude_4_sonnet, gpt_5)
    with pytest.raises(ConfigError, match=r"ANTHROPIC_API_KEY.*OPENAI_API_KEY"):
        check_model(both)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    check_model(both)
    check_model(ScriptedModel([]))


def test_fallback_models_are_a_flat_list() -> None:
    models = fallback_models(claude_4_sonnet, fallback_models(gpt_5, gpt_41))
    assert models.models == (claude_4_sonnet, gpt_5, gpt_41)
    assert models.name == "claude-4-sonnet | gpt-5 | gpt-4.1" and models.context_window == 200_000
    with pytest.raises(ConfigError, match="at least one"):
        fallback_models()
    with pytest.raises(ConfigError, match="'gpt_5' is not a Model"):
        fallback_models("gpt_5")  # type: ignore[arg-type]
