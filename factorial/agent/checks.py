"""Checks an agent's options when the agent is made. The error says which option is wrong, and what to write instead.

Called by the agent's constructor. Every message names the agent and the option.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from factorial._core.signature import can_take
from factorial.context import AgentContext
from factorial.errors import ConfigError
from factorial.models import FallbackModels, Model, ModelSettings
from factorial.tools import (
    FINAL_OUTPUT,
    FunctionTool,
    build_tools,
    execution_parameters,
    final_output_tool,
)
from factorial.utils import to_snake_case

__all__ = ["check_options", "checked_name", "checked_tools", "output_tool"]

_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_A_FUNCTION = "a function of the agent's context, as in lambda ctx: ..."
_COUNT = "use None, or a whole number of at least 1"


def checked_name(name: object) -> str:
    """`name`, made fit for queues and logs. Raises `ConfigError`."""
    snake = re.sub(r"[\s.]+", "_", to_snake_case(name.strip())) if isinstance(name, str) else ""
    if not _NAME.fullmatch(snake):
        raise ConfigError(f"name={name!r} cannot name an agent: use 1 to 64 letters, digits, '_' or '-'")
    return snake


def checked_tools(agent: str, tools: object, *, parse_args: bool) -> dict[str, FunctionTool]:
    """The tools of the agent by name. Raises `ConfigError`."""
    if tools is None:
        return {}
    if not isinstance(tools, Iterable) or isinstance(tools, str | bytes | Mapping):
        raise ConfigError(f"agent {agent!r}: tools={tools!r}: give a list of functions, as in tools=[get_weather]")
    return build_tools(tools, parse_args=parse_args)


def output_tool(agent: str, output_type: Any) -> FunctionTool | None:
    """The tool with which the model ends a run, if the agent has an output type. Raises `ConfigError`."""
    try:
        return None if output_type is None else final_output_tool(output_type)
    except ConfigError as unfit:
        raise ConfigError(f"agent {agent!r}: {unfit}") from None


class _Made(Protocol):
    """An agent, as far as its options are checked together."""

    name: str
    tools: dict[str, FunctionTool]
    final_output: FunctionTool | None
    context_window_limit: int | None
    model_settings: ModelSettings[Any]


def check_options(agent: _Made) -> None:
    """Raise `ConfigError` for the first option of `agent` that cannot work."""
    for option, (fits, advice) in _OPTIONS.items():
        value = getattr(agent, option)
        if not fits(value):
            raise ConfigError(f"agent {agent.name!r}: {option}={value!r}: {advice}")
    limit, answer = agent.context_window_limit, agent.model_settings.max_completion_tokens
    if limit is not None and isinstance(answer, int) and answer >= limit:
        raise ConfigError(
            f"agent {agent.name!r}: context_window_limit={limit} holds the request and its answer, and "
            f"max_completion_tokens={answer} leaves nothing for the request"
        )
    if agent.final_output is not None and FINAL_OUTPUT in agent.tools:
        raise ConfigError(
            f"agent {agent.name!r}: with output_type, {FINAL_OUTPUT!r} is the tool that ends the run: "
            "give your own tool another name"
        )


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)


def _is_limit(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _are_instructions(value: Any) -> bool:
    if value is None or isinstance(value, str) or can_take(value, "agent_ctx"):
        return True
    return callable(value) and can_take(value, "agent_ctx", **dict.fromkeys(execution_parameters(value)))


def _is_model(value: object) -> bool:
    return value is None or isinstance(value, Model | FallbackModels) or can_take(value, "agent_ctx")


def _is_client(value: object) -> bool:
    return callable(getattr(value, "completion", None))


def _is_context_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, AgentContext)


_OPTIONS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "description": (lambda value: isinstance(value, str), "give text"),
    "instructions": (_are_instructions, f"give text, or {_A_FUNCTION}"),
    "model": (_is_model, f"it is not a Model: import one from factorial, or give {_A_FUNCTION}"),
    "model_settings": (lambda value: isinstance(value, ModelSettings), "write ModelSettings(temperature=...)"),
    "max_turns": (_is_count, _COUNT),
    "output_retries": (_is_limit, "use a whole number of at least 0"),
    "incomplete_answers": (lambda value: value in ("error", "mark"), 'use "error" or "mark"'),
    "context_window_limit": (_is_count, _COUNT),
    "request_timeout": (_is_seconds, "use seconds above 0"),
    "stream": (_is_flag, "use True or False"),
    "parse_tool_args": (_is_flag, "use True or False"),
    "client": (
        _is_client,
        "give a MultiClient, or an object of your own with an async method `completion`",
    ),
    "context_class": (_is_context_class, "it must extend AgentContext"),
}
