"""Factorial runs LLM agents durably: a `kill -9` at any moment loses nothing and repeats no finished step.

    from factorial import Agent, AgentContext, Orchestrator

The names in `__all__` are the public interface, together with `factorial.errors`, `factorial.events`,
`factorial.utils`, `factorial.config`, `factorial.models` and `factorial.testing`. `import factorial` is cheap: each
name is imported when it is first used. It opens no connection and needs no key.
"""

import importlib

from factorial._core.version import __version__ as __version__

TYPE_CHECKING = False  # type checkers take it as true; `typing` itself would be the most expensive import here
if TYPE_CHECKING:
    from factorial.agent.agent import Agent, BaseAgent
    from factorial.agent.completion import RunCompletion, TurnCompletion
    from factorial.agent.decorators import publish_progress, retry
    from factorial.config import (
        AgentWorkerConfig,
        EventsConfig,
        HealthConfig,
        LoggingConfig,
        MaintenanceWorkerConfig,
        MetricsTimelineConfig,
        ObservabilityConfig,
        RedisConfig,
        RunnerSupervisorConfig,
        SupervisorConfig,
        TaskTTLConfig,
    )
    from factorial.context import AgentContext, Batch, ContextType, ExecutionContext
    from factorial.errors import FactorialError, FatalAgentError, RetryableError
    from factorial.events import AgentEvent, BaseEvent, BatchEvent, EventPublisher, QueueEvent
    from factorial.models import (
        MODELS,
        Model,
        ModelSettings,
        MultiClient,
        Provider,
        ResolvedModelSettings,
        ai_gateway,
        claude_4_opus,
        claude_4_sonnet,
        claude_35_haiku,
        claude_35_sonnet,
        claude_37_sonnet,
        claude_45_haiku,
        claude_45_opus,
        claude_45_sonnet,
        fallback_models,
        find_model,
        fireworks_kimi_k2,
        fireworks_qwen_3_235b,
        fireworks_qwen_3_coder_480b,
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
    )
    from factorial.orchestrator import Orchestrator
    from factorial.task import Task, TaskStatus
    from factorial.tools import (
        AgentTool,
        AgentToolAction,
        AgentToolActionResult,
        FunctionTool,
        FunctionToolAction,
        FunctionToolActionResult,
        deferred_result,
        deferred_tool,
        forking_tool,
        function_tool,
        tool,
    )

__all__ = [
    # agents and their contexts
    "Agent", "AgentContext", "BaseAgent", "Batch", "ContextType", "ExecutionContext", "RunCompletion", "TurnCompletion",
    "publish_progress", "retry",
    # tools
    "AgentTool", "AgentToolAction", "AgentToolActionResult", "FunctionTool", "FunctionToolAction",
    "FunctionToolActionResult", "deferred_result", "deferred_tool", "forking_tool", "function_tool", "tool",
    # models
    "MODELS", "Model", "ModelSettings", "MultiClient", "Provider", "ResolvedModelSettings", "ai_gateway",
    "fallback_models", "find_model",
    "claude_35_haiku", "claude_35_sonnet", "claude_37_sonnet", "claude_45_haiku", "claude_45_opus", "claude_45_sonnet",
    "claude_4_opus", "claude_4_sonnet", "fireworks_kimi_k2", "fireworks_qwen_3_235b", "fireworks_qwen_3_coder_480b",
    "gpt_41", "gpt_41_mini", "gpt_41_nano", "gpt_5", "gpt_52", "gpt_54", "gpt_54_mini", "gpt_5_mini", "gpt_5_nano",
    "grok_3", "grok_3_mini", "grok_4", "o3", "o4_mini",
    # tasks, and the system that runs them
    "AgentWorkerConfig", "EventsConfig", "HealthConfig", "LoggingConfig", "MaintenanceWorkerConfig",
    "MetricsTimelineConfig", "ObservabilityConfig", "Orchestrator", "RedisConfig", "RunnerSupervisorConfig",
    "SupervisorConfig", "Task", "TaskStatus", "TaskTTLConfig",
    # events
    "AgentEvent", "BaseEvent", "BatchEvent", "EventPublisher", "QueueEvent",
    # errors: all of them are in factorial.errors
    "FactorialError", "FatalAgentError", "RetryableError",
]  # fmt: skip

_NAMES = {
    "factorial.agent.agent": "Agent BaseAgent",
    "factorial.agent.completion": "RunCompletion TurnCompletion",
    "factorial.agent.decorators": "publish_progress retry",
    "factorial.config": (
        "AgentWorkerConfig EventsConfig HealthConfig LoggingConfig MaintenanceWorkerConfig "
        "MetricsTimelineConfig ObservabilityConfig RedisConfig RunnerSupervisorConfig SupervisorConfig "
        "TaskTTLConfig"
    ),
    "factorial.context": "AgentContext Batch ContextType ExecutionContext",
    "factorial.errors": "FactorialError FatalAgentError RetryableError",
    "factorial.events": "AgentEvent BaseEvent BatchEvent EventPublisher QueueEvent",
    "factorial.models": (
        "MODELS Model ModelSettings MultiClient Provider ResolvedModelSettings ai_gateway claude_4_opus "
        "claude_4_sonnet claude_35_haiku claude_35_sonnet claude_37_sonnet claude_45_haiku claude_45_opus "
        "claude_45_sonnet fallback_models find_model fireworks_kimi_k2 fireworks_qwen_3_235b "
        "fireworks_qwen_3_coder_480b gpt_5 gpt_5_mini gpt_5_nano gpt_41 gpt_41_mini gpt_41_nano gpt_52 gpt_54 "
        "gpt_54_mini grok_3 grok_3_mini grok_4 o3 o4_mini"
    ),
    "factorial.orchestrator": "Orchestrator",
    "factorial.task": "Task TaskStatus",
    "factorial.tools": (
        "AgentTool AgentToolAction AgentToolActionResult FunctionTool FunctionToolAction FunctionToolActionResult "
        "deferred_result deferred_tool forking_tool function_tool tool"
    ),
}
"""The names that each module provides."""

_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}
_SUBMODULES = frozenset(
    ["agent", "config", "context", "errors", "events", "models", "orchestrator", "task", "testing", "tools", "utils"]
)

if not TYPE_CHECKING:  # a type checker would take any name for an attribute

    def __getattr__(name: str) -> object:
        """Import what `name` is: an exported name, or a public module."""
        if name in _MODULE_OF:
            value = getattr(importlib.import_module(_MODULE_OF[name]), name)
        elif name in _SUBMODULES:
            value = importlib.import_module(f"factorial.{name}")
        else:
            raise AttributeError(f"module 'factorial' has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted(["__all__", "__doc__", "__version__", *__all__, *_SUBMODULES])
