"""Agents: what a user defines.

    agent         `Agent` and `BaseAgent`: parameters, and the methods that may be overridden
    checks        the check of the parameters
    callbacks     the lifecycle callbacks
    completion    what a turn and a run return
    decorators    `@retry` and `@publish_progress`
    request       the request of a model call
    compat        what agents of nfactorial 0.1.x override
    load          an agent by its name, `module:attribute`
    lifecycle/    the life of a run

The contexts, `FunctionTool` and `serialize_data` are here for programs of nfactorial 0.1.x, which may import them by
this path.
"""

from factorial.agent.agent import Agent, BaseAgent
from factorial.agent.completion import RunCompletion, TurnCompletion
from factorial.agent.decorators import publish_progress, retry
from factorial.context import AgentContext, ContextType, ExecutionContext
from factorial.models import ModelSettings, ResolvedModelSettings
from factorial.tools import (
    AgentTool,
    AgentToolActionResult,
    FunctionTool,
    FunctionToolActionResult,
    function_tool,
    tool,
)
from factorial.utils import serialize_data

__all__ = [
    "Agent", "AgentContext", "AgentTool", "AgentToolActionResult", "BaseAgent", "ContextType", "ExecutionContext",
    "FunctionTool", "FunctionToolActionResult", "ModelSettings", "ResolvedModelSettings", "RunCompletion",
    "TurnCompletion", "function_tool", "publish_progress", "retry", "serialize_data", "tool",
]  # fmt: skip
