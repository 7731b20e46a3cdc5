"""Agents: what a user defines (`agent.py`), one turn (`turn.py`), and the life of a run (`run.py`)."""

from factorial.agent.agent import Agent, BaseAgent
from factorial.agent.completion import RunCompletion, TurnCompletion
from factorial.agent.decorators import publish_progress, retry
from factorial.models import ModelSettings, ResolvedModelSettings

__all__ = [
    "Agent", "BaseAgent", "ModelSettings", "ResolvedModelSettings", "RunCompletion", "TurnCompletion",
    "publish_progress", "retry",
]  # fmt: skip
