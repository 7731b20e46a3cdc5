"""The settings of model calls.

Each setting is a value, or a function of the agent's context that is called before each model call. A setting that is
`None` is not sent, so the provider's default applies.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Generic

from factorial._core.signature import can_take
from factorial.context import ContextType
from factorial.errors import ConfigError

__all__ = ["ModelSettings", "ResolvedModelSettings", "ToolChoice"]


ToolChoice = str | Mapping[str, Any]
"""`"auto"`, `"none"`, `"required"`, or `{"type": "function", "function": {"name": ...}}` for one tool."""


@dataclass(frozen=True, slots=True)
class ResolvedModelSettings:
    """The settings of one model call. Raises `ConfigError` for a value that no provider accepts."""

    temperature: float | None = None
    max_completion_tokens: int | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            acceptable, wanted = _RULES[setting.name]
            if value is not None and not acceptable(value):
                raise ConfigError(
                    f"ModelSettings: {setting.name}={value!r}: use {wanted}, or a function that returns it"
                )


@dataclass(frozen=True)
class ModelSettings(Generic[ContextType]):
    """The settings of an agent's model calls. Each is a value, or a function of the context that returns one.

    Raises `ConfigError` that names the setting.
    """

    temperature: float | Callable[[ContextType], float | None] | None = None
    """The randomness of the answer, from 0 to 2."""
    max_completion_tokens: int | Callable[[ContextType], int | None] | None = None
    """The maximum length of the answer, in tokens."""
    tool_choice: ToolChoice | Callable[[ContextType], ToolChoice | None] | None = None
    """Whether the model may, must or must not call tools, or the one that it must call."""
    parallel_tool_calls: bool | Callable[[ContextType], bool | None] | None = None
    """Whether one answer may call several tools."""

    def __post_init__(self) -> None:
        ResolvedModelSettings(**{name: value for name, value in self._values().items() if not callable(value)})
        for name, value in self._values().items():
            if callable(value) and not can_take(value, "agent_ctx"):
                raise ConfigError(
                    f"ModelSettings: {name}={value!r}: the function is called with the agent's context: give it one "
                    "parameter, as in lambda ctx: ..."
                )

    def resolve(self, agent_ctx: ContextType) -> ResolvedModelSettings:
        """The settings for a model call in the state `agent_ctx`. Raises `ConfigError` for an invalid value."""
        return ResolvedModelSettings(
            **{name: value(agent_ctx) if callable(value) else value for name, value in self._values().items()}
        )

    def _values(self) -> dict[str, Any]:
        return {setting.name: getattr(self, setting.name) for setting in fields(self)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda value: _is_number(value) and 0 <= value <= 2, "a number from 0 to 2"),
    "max_completion_tokens": (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1,
        "a whole number of at least 1",
    ),
    "tool_choice": (
        lambda value: value in ("auto", "none", "required") if isinstance(value, str) else isinstance(value, Mapping),
        '"auto", "none", "required" or {"type": "function", "function": {"name": ...}}',
    ),
    "parallel_tool_calls": (lambda value: isinstance(value, bool), "True or False"),
}
