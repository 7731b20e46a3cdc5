"""Factorial runs LLM agents durably: a `kill -9` at any moment loses nothing and repeats nothing that was finished.

    from factorial import Agent, AgentContext, Orchestrator

What is exported here is the public interface, with `factorial.errors`, `factorial.events`, `factorial.utils` and
`factorial.testing`. To import it opens no connection and needs no key.
"""

from typing import TYPE_CHECKING, Any

from factorial._core.version import __version__ as __version__
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
    Model,
    ModelSettings,
    MultiClient,
    Provider,
    ResolvedModelSettings,
    claude_4_opus,
    claude_4_sonnet,
    claude_35_haiku,
    claude_35_sonnet,
    claude_37_sonnet,
    fallback_models,
    find_model,
    gpt_5,
    gpt_5_mini,
    gpt_5_nano,
    gpt_41,
    gpt_41_mini,
    gpt_41_nano,
    gpt_54,
    gpt_54_mini,
    grok_3,
    grok_3_mini,
    o3,
    o4_mini,
)
from factorial.task import Task, TaskStatus
from factorial.tools import (
    FunctionTool,
    FunctionToolAction,
    FunctionToolActionResult,
    deferred_result,
    forking_tool,
    function_tool,
)

if TYPE_CHECKING:
    from factorial.orchestrator import Orchestrator

__all__ = [
    # agents and their contexts
    "Agent", "AgentContext", "BaseAgent", "Batch", "ContextType", "ExecutionContext", "RunCompletion", "TurnCompletion",
    "publish_progress", "retry",
    # tools
    "FunctionTool", "FunctionToolAction", "FunctionToolActionResult", "deferred_result", "forking_tool",
    "function_tool",
    # models
    "Model", "ModelSettings", "MultiClient", "Provider", "ResolvedModelSettings", "fallback_models", "find_model",
    "claude_35_haiku", "claude_35_sonnet", "claude_37_sonnet", "claude_4_opus", "claude_4_sonnet",
    "gpt_41", "gpt_41_mini", "gpt_41_nano", "gpt_5", "gpt_54", "gpt_54_mini", "gpt_5_mini", "gpt_5_nano",
    "grok_3", "grok_3_mini", "o3", "o4_mini",
    # tasks, and the system that runs them
    "AgentWorkerConfig", "EventsConfig", "HealthConfig", "LoggingConfig", "MaintenanceWorkerConfig",
    "MetricsTimelineConfig", "ObservabilityConfig", "Orchestrator", "RedisConfig", "RunnerSupervisorConfig",
    "SupervisorConfig", "Task", "TaskStatus", "TaskTTLConfig",
    # events
    "AgentEvent", "BaseEvent", "BatchEvent", "EventPublisher", "QueueEvent",
    # errors: all of them are in factorial.errors
    "FactorialError", "FatalAgentError", "RetryableError",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The orchestrator is imported when it is asked for: an agent module needs no Redis client."""
    if name == "Orchestrator":
        from factorial.orchestrator import Orchestrator

        return Orchestrator
    raise AttributeError(f"module 'factorial' has no attribute {name!r}")
